"""Adapters to the engines: the only files here that import transformers, diffusers or vllm."""
