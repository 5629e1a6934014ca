"""The HTTP endpoints: one module a route or group of routes."""
