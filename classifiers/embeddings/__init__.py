"""Heads on embeddings, of texts and of images: their training, and their calibrated scores. numpy
alone runs them."""
