"""Data files of users: prompts, concepts, images."""
