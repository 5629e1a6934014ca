"""Disguises of text, undone: foreign letters, encodings, ciphers, spellings.

`folding` undoes lookalike characters, `decoding` all families of encodings in `codecs`,
`respelling` spellings; `views` combines them, and `rewriting` maps positions back to the raw text.
`language` tells whether letters are English, which decides where an encoding has no sign of its
own; `unreadable` finds what is left. To add a disguise: a lookalike character is an entry of
`confusables`, an encoding a generator in the family in `codecs` that it belongs to (its runs in
`Codec.sign` and `Codec.run` too), a spelling a function in `respelling` and a step of
`views.STEPS`. Each needs its inverse in benchmarks/disguises/writing.py, which the tests use.
"""
