"""The share of answers that call a tool which parse, with a real model and our own prompts."""
