"""Words and phrases of lists: as they are written, and with typing errors."""
