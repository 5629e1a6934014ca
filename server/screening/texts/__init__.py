"""Texts of a request or an answer: found, read, scored, rewritten."""
