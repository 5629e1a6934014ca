"""The diffusers engine: families of pipelines, samplers, one running batch of images."""
