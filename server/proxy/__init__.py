"""The sidecar proxy: an app that forwards requests to OpenAI-compatible upstreams."""
