"""`guard organisations`, `guard teams` and `guard keys`: who may ask a server, and how much."""
