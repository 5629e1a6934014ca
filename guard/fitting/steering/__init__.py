"""Fitting a steering guard: gate, directions, thresholds, report."""
