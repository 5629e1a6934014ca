"""Erasers that are trained on a pipeline's denoiser, as overlays: one file for each loss.

`fit` trains any of them; `layers` finds the layers; `trajectories` has the noisy latents that
losses are computed on.
"""
