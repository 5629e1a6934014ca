"""Attacks on image guards, from the papers: prompts that are searched for, not thought up.

Each command writes prompts that `guard eval images` plays: the same prompt at several efforts,
so that the report shows how often the concept comes back for what an attacker spends.
"""
