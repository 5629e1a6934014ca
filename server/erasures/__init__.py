"""Erasures over HTTP: guards that are made from names while the server runs, and their
certificates."""
