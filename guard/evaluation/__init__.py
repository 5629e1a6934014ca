"""Evaluation suites: the effect of a policy on prompts that no fit has used."""
