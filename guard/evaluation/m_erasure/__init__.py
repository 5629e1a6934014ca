"""Attacks that go around the prompt: what M-ErasureBench (arXiv 2512.22877) asks of an eraser."""
