"""Fitting the guards of image models, one module a method."""
