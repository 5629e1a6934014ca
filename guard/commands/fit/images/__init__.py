"""`guard fit` of the guards of image models."""
