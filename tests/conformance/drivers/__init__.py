"""The clients as processes that take one command after the other."""
