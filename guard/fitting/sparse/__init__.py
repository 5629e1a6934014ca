"""Sparse autoencoders of a model's states, and guards of the features that tell a concept."""
