"""What operators see: metrics, verdict records, request ids, log rotation."""
