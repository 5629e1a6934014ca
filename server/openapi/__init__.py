"""The OpenAPI document of a server, made from its routes, and the page that shows it."""
