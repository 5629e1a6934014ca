"""Disguises of text, undone: foreign letters, encodings, spellings.

`folding` undoes lookalike characters, `decoding` encodings, `respelling` spellings; `views`
combines them, and `rewriting` maps positions back to the raw text. To add a disguise: a lookalike
character is an entry of `confusables`, an encoding a `Codec` with a generator of runs in
`decoding`, a spelling a function in `respelling`; the last two are also a step of `views.STEPS`.
Each needs its inverse in tests/classifiers/text/disguised_texts.py.
"""
