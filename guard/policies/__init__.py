"""Policies that change while a server runs: their versions, and what a change would have done."""
