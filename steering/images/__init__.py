"""The seams of an image model: embedding, projection, guidance, latent, output."""
