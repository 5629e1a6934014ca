"""Models on disk and in memory: sources, recipes, and loaded models for fitting and evaluation."""
