"""The events of each streamed route: where they have new text, and how a stream ends early."""
