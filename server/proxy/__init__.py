"""The sidecar proxy: an app that forwards to OpenAI-compatible upstreams."""
