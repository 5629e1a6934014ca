"""Organisations, teams and keys: who may ask, under which policies, and how much."""
