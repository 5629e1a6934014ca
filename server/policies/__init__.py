"""Policies that change while the server runs, over HTTP and from the file."""
