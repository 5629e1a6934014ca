"""The names by which the vLLM plugin is configured, for users that must not import it."""

CONFIG = "GUARD_CONFIG"
"""The environment variable with the path of the configuration; without it the plugin is off."""

POLICY = "guard_policy"
"""The extra argument of a request with its policy."""
