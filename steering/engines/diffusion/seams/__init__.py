"""Hooks inside a denoiser, and guards between two of its steps."""
