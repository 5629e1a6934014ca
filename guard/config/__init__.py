"""The configuration file: its schema, checks between sections, line numbers, API keys."""
