"""Fitting a screen of texts: a head on a sentence encoder."""
