"""The texts of a request or a response: collected, scored, redacted."""
