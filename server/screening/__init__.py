"""Screens of text around an app that speaks OpenAI's HTTP: our server, or a way to an upstream."""
