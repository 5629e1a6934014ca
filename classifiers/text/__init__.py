"""Classifiers and patterns of text, and the undoing of disguises. Runs without torch, as a proxy.

`disguises` has the views and readings of a text, `patterns` the lists of words and expressions,
`encoder` the sentence encoder, whose embeddings `classifiers.embeddings` scores.
"""
