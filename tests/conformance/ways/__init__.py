"""The ways of clients: through the proxy to a scripted upstream, to a server with a model, and to
that server through the proxy."""
