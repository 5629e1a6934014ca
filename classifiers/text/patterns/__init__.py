"""Patterns of text: lists of words and regular expressions, matching, checks of matches.

`files` reads a list, `matching` finds its matches in a text and through its disguises. `pending`
tells from where on a text that goes on may still be part of a match, which `streams` follows piece
by piece: `partial` finds what may be the beginning of a match of an expression, `words` of a word;
`words` also finds those with typing errors.
`syntax` parses expressions, `width` bounds how long a match can be. To add a check of matches (a
checksum, an entropy), write a function in `checksums` and name it in `checksums.CHECKS`.

The shipped lists are `recognizers`: an expression finds candidates, a judge (`candidates`) decides.
`scanning` finds the candidates of all expressions in a view, compiled by `expressions`.
"""
