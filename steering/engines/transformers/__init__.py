"""The transformers engine: decoder layers, one running batch of rows, hooks on a caller's model."""
