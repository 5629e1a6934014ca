"""Recognisers of personal data: one kind a file."""
