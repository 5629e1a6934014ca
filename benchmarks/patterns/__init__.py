"""What the shipped pattern lists find and miss, beside Presidio and detect-secrets."""
