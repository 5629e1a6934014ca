# The server with language and image models. torch comes with CUDA and runs on the processor too; an
# index of its builds for the processor alone, given as TORCH_INDEX beside the usual one, makes the
# image some gigabytes smaller. Build from the repository's root:
#   docker build -f examples/deployment/docker/server.Dockerfile -t inference-guard-server .
FROM python:3.11-slim AS build
ARG TORCH_INDEX=
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE config.toml ./
COPY guard guard
COPY steering steering
COPY classifiers classifiers
COPY server server
COPY examples examples
RUN python -m venv /opt/guard \
 && /opt/guard/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt torch \
 && /opt/guard/bin/pip install --no-cache-dir -c constraints.txt ".[serve,diffusers]"

FROM python:3.11-slim
# new volumes at these paths belong to the user who writes them
RUN useradd --create-home --uid 10001 guard && install -d -o guard -g guard /models /log
COPY --from=build /opt/guard /opt/guard
ENV PATH=/opt/guard/bin:$PATH GUARD_CACHE=/models HF_HOME=/models/huggingface
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["guard", "serve", "--config", "/config/config.toml", "--host", "0.0.0.0", "--port", "8000"]
