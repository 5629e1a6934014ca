"""Puts the plugin's parts into vLLM's classes, once a process."""

from __future__ import annotations

from pathlib import Path

import vllm

from guard.config.schema import load_config
from guard.config.vllm_plugin import CONFIG
from guard.errors import ConfigError
from server.vllm import front, outputs, replies, workers
from server.vllm.policies import Policies
from server.vllm.recording import Recording
from steering.engines.vllm import scheduler

TESTED = ("0.32",)
"""Releases of vLLM whose sources were read and that the tests run on."""

_installed: list[Path] = []


def install(path: Path | str, *, keyed: bool = True, record: outputs.Record | None = None) -> None:
    """Guard what vLLM serves in this process by the configuration there. Does nothing the second
    time.

    `keyed`: where the configuration has keys, requests may have only what all of them may; a front
    end that knows whose a request is says False. `record` None takes the configuration's audit log
    and vLLM's metrics. Raises GuardError.
    """
    if _installed:
        return
    if not vllm.__version__.startswith(tuple(f"{release}." for release in TESTED)):
        told = f"vLLM {vllm.__version__} is not supported: install {' or '.join(TESTED)}"
        raise ConfigError([f"{told}, or unset {CONFIG} to serve without guards"])
    path = Path(path)
    config = load_config(path)
    _installed.append(path)
    recording = Recording(config.server.audit_log)

    def opened(made: Policies) -> None:
        if record is None:
            recording.open()
        outputs.expect(made.entries.values())

    front.surround(path, keyed=keyed, opened=opened)
    outputs.surround(record or recording)
    replies.surround(config)
    workers.surround(path)
    scheduler.surround()
