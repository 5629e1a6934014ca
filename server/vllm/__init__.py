"""The vLLM plugin: `GUARD_CONFIG=config.toml vllm serve MODEL`.

vLLM finds it through the entry point group `vllm.general_plugins` and calls it in every process of
the engine. Without GUARD_CONFIG it does nothing. The policy of a request is `guard_policy` of its
extra arguments (`vllm_xargs` over HTTP, `SamplingParams.extra_args` offline), else the server's
default.
"""

from __future__ import annotations

import os
from typing import Any

from guard.config.vllm_plugin import CONFIG


def register() -> None:
    """Guard the models that vLLM serves in this process. Raises GuardError where that fails."""
    if path := os.environ.get(CONFIG):
        # imported here: without a configuration nothing is loaded
        from server.vllm.install import install

        install(path)


def endpoints() -> Any:
    """Our `EndpointPlugin`, where VLLM_PLUGINS names this plugin."""
    from server.vllm.http.endpoints import GuardEndpoints

    return GuardEndpoints()
