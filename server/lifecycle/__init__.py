"""The server process: listening, running, stopping without losing an answer."""
