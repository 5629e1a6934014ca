"""Fitting a screen of images: a head on an image encoder."""
