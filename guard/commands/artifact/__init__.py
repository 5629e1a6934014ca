"""Commands on artifacts: what is in one, whether it holds for a copy of its model, its gate."""
