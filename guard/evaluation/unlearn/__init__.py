"""Suite `unlearn`: does a policy keep a language model from saying what it knows, and only that."""
