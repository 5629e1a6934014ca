"""The wire formats of HTTP: bodies, forms, schemas, replies, streams."""
