"""Words and regular expressions: files of them, matching, checks of what was matched."""
