# vLLM with the plugin. The base is a release that the plugin was tested with (docs/vllm.md).
# Build from the repository's root:
#   docker build -f examples/deployment/docker/vllm.Dockerfile -t inference-guard-vllm .
ARG VLLM=v0.33.0
FROM vllm/vllm-openai:${VLLM}
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE config.toml ./
COPY guard guard
COPY steering steering
COPY classifiers classifiers
COPY server server
COPY examples examples
# vLLM and torch are the base's: what else the plugin needs is installed beside them, in versions
# that suit them
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[screens]" "prometheus-client>=0.20"
WORKDIR /
ENV GUARD_CONFIG=/config/config.toml GUARD_CACHE=/models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=600s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
