"""Language models from checkpoints and GGUF files."""
