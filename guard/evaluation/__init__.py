"""Evaluation suites: what a policy does on prompts that no fit has seen."""
