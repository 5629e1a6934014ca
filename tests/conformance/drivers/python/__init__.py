"""One file for each client, run in the environment of the clients, not of the project."""
