"""Encoders, classifier heads, calibration. Knows nothing of policies, tenants or HTTP."""
