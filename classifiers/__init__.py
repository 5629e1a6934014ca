"""What senses: encoders, heads, calibration. Knows nothing of policies, tenants or HTTP."""
