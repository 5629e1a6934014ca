"""The hidden seam: guards on the residual stream of a language model, stacked, row by row."""
