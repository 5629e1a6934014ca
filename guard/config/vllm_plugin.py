"""By what the vLLM plugin is spoken to, for who uses it and must not import it."""

CONFIG = "GUARD_CONFIG"
"""The environment variable with the path of the configuration; without it there is no plugin."""

POLICY = "guard_policy"
"""Of a request's extra arguments: the policy that it asks for."""
