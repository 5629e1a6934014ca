"""Patches vLLM's classes with the parts of the plugin, once for each process."""

from __future__ import annotations

from pathlib import Path

import vllm
from vllm import envs

from guard.config.schema import load_config
from guard.config.vllm_plugin import CONFIG
from guard.errors import ConfigError
from server.vllm import core, front, outputs, workers
from server.vllm.http import attach
from server.vllm.policies import Policies
from server.vllm.recording import process_recording
from steering.engines.vllm import connectors, scheduler

TESTED = ("0.32", "0.33")
"""Releases of vLLM whose sources were read and that the tests run on: of 0.33 the Python, on the
compiled parts of 0.32, since it has no CPU build yet."""

_installed: list[Path] = []


def install(path: Path | str, *, keyed: bool = True, record: outputs.Record | None = None) -> None:
    """Guard the models that vLLM serves in this process, by the configuration at `path`. The second
    call does nothing.

    `keyed`: requests may name only policies that every key of the configuration allows; False is
    for a front end that knows the key of each request. `record` None takes the configuration's
    audit log and vLLM's metrics. Raises GuardError.
    """
    if _installed:
        return
    if not vllm.__version__.startswith(tuple(f"{release}." for release in TESTED)):
        problem = f"vLLM {vllm.__version__} is not supported: install {' or '.join(TESTED)}"
        raise ConfigError([f"{problem}, or unset {CONFIG} to serve without guards"])
    if envs.VLLM_USE_RUST_FRONTEND:
        problem = "vLLM's Rust front end knows no policies: unset VLLM_USE_RUST_FRONTEND"
        raise ConfigError([f"{problem}, or unset {CONFIG} to serve without guards"])
    path = Path(path)
    config = load_config(path)
    _installed.append(path)
    recording = process_recording()

    def on_open(policies: Policies) -> None:
        if record is None:
            recording.open(config.server.audit_log, config.server.audit_key)
        outputs.register(policies.entries.values())

    front.patch(path, keyed=keyed, on_open=on_open)
    outputs.patch(record or recording)
    if keyed:
        attach.patch()
    core.patch()
    workers.patch(path)
    scheduler.patch()
    connectors.patch()
