"""The events of each streamed route: where their new text is, and how a stream ends early."""
