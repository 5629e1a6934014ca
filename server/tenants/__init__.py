"""Organisations, teams and keys over HTTP."""
