"""Commands that make guards from names: `guard new`, `refine`, `suppress`, and `profile`."""
