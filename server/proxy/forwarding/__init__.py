"""Requests on their way to an upstream: which one, what is sent, how long it may take."""
