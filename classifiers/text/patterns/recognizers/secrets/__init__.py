"""Recognisers of secrets: one kind a file. `gitleaks` reads the public list of rules."""
