"""The bodies of requests, a module for each API: each parameter is honoured or refused by name."""
