"""Suite `unlearn`: does a policy keep a language model from leaking facts, and only these."""
