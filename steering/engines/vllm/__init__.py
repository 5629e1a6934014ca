"""vLLM: hooks on its decoder layers, and the rows of its batches. Imports vLLM: only the plugin
does."""
