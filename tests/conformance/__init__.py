"""Real clients through the proxy: `make conformance`."""
