"""What clients send and get: bodies, forms, schemas, replies, streams."""
