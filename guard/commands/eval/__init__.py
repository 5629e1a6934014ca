"""`guard eval`: one module a suite."""
