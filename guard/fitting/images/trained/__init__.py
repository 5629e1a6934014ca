"""Erasers that are trained as low-rank overlays: one fit and one loop for all of them.

`denoisers/` and `text_encoders/` have a file for each published loss; `fit` trains it, `lesson` is
what it is computed from.
"""
