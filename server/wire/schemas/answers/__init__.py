"""What clients get, a module for each API: JSON objects, as the OpenAPI document shows them."""
