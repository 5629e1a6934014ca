"""Attacks on image guards from the papers: searches for prompts that bring a concept back.

Each command writes prompts for `guard eval images`, the same prompt at several efforts, so that the
report shows how often the concept appears for the effort of an attacker.
"""
