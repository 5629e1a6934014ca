"""Disguises of text undone: foreign letters, encodings, spellings, and the way back to the raw
text."""
