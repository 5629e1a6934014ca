"""The HTTP endpoints, a module for each route or group of routes."""
