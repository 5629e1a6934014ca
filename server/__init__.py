"""What speaks HTTP: an OpenAI-compatible app over services that run models."""
