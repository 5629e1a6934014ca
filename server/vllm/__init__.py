"""The vLLM plugin: `GUARD_CONFIG=config.toml vllm serve MODEL`.

Found through the entry point group `vllm.general_plugins`, and called in every process of the
engine. Without GUARD_CONFIG it does nothing. A request's policy is `guard_policy` of its extra
arguments (`vllm_xargs` over HTTP, `SamplingParams.extra_args` offline), else the server's default.
"""

from __future__ import annotations

import os

from guard.config.vllm_plugin import CONFIG


def register() -> None:
    """Guard what vLLM serves in this process. Raises GuardError where it must not be served."""
    if path := os.environ.get(CONFIG):
        # imported where there is something to do: without it nothing is loaded
        from server.vllm.install import install

        install(path)
