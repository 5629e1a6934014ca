"""Schedulers as tables: steps, estimates of the clean latents, trajectories, inversion."""
