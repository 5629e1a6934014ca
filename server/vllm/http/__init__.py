"""vLLM's HTTP server with guards: policies, screens of text, verdicts, and routes of our own."""
