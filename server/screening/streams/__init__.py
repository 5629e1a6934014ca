"""Streamed answers behind the screens: events, text that is held back, formats."""
