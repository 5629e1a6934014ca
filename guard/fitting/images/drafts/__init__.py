"""Guards of an image model from the name of a concept: a draft in words, fits, an evaluation."""
