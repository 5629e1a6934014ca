"""Suppression lists: one gate for each of many names, calibrated for all of them together."""
