"""What clients get, a module for each API: types of JSON objects, which the OpenAPI document shows."""
