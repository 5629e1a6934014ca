"""The endpoints that generate text, a module for each API."""
