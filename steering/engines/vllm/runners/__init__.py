"""vLLM's model runners: what they have in common for guards, and the seams into each of them."""
