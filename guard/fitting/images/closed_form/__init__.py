"""Closed-form erasers of the denoiser: one solver, and one file of moments for each."""
