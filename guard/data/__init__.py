"""Files that people write: prompts, concepts, images."""
