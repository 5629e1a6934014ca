"""Fitting: from prompts and a model to an artifact with its report."""
