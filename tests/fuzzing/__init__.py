"""Coverage-guided fuzzing of every reader of bytes from outside."""
