"""`guard fit`: one module a method or group of methods."""
