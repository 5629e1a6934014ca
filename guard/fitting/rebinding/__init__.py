"""Fitted guards bound to another copy of their model: quantised, fine-tuned, newer."""
