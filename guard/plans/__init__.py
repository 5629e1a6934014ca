"""Policies made ready for one model: which guards fit, how requests carry them, what is decided."""
