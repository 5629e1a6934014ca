"""The places where the plugin meets vLLM, as data, and their check against vLLM's sources."""
