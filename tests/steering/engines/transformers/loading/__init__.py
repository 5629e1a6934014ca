"""Tests of loading language models."""
