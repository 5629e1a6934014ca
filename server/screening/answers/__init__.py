"""Screening of answers that are one JSON value, of errors, and of the verdicts of a guarded app."""
