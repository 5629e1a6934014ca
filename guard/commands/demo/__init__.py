"""`guard demo`."""
