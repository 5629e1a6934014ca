"""Disguised texts against the text screens, and against a model that is to read them."""
