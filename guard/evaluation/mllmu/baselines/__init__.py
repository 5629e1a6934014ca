"""Other ways to forget, asked the same questions as a policy; one module each."""
