"""Erasers that are trained on a pipeline's text encoders, as overlays: one file for each loss.

`fit` trains any of them; `blocks` finds the layers.
"""
