"""What keeps vLLM with the plugin from starting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.artifact import Artifact  # noqa: E402
from tests.vllm.checkpoint import CONFIG  # noqa: E402
from tests.vllm.driver import environment, played  # noqa: E402


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense = 1", "nonsense"),
        (CONFIG.replace("late.safetensors", "lost.safetensors"), "lost.safetensors"),
    ],
)
def test_a_bad_configuration_keeps_the_engine_from_starting(
    folder: Path, text: str, named: str
) -> None:
    (folder / "bad.toml").write_text(text, "utf-8")
    came, told = played(folder, [[{"prompt": [5], "tokens": 1}]], "bad.toml", {})
    assert came is None and named in told


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"kv_transfer_config": {"kv_connector": "MultiConnector", "kv_role": "kv_both"}},
            "the KV connector MultiConnector",
        ),
        ({"weight_transfer_config": {"backend": "ipc"}}, "weights that come while it runs"),
    ],
)
def test_what_guards_cannot_follow_keeps_the_engine_from_starting(
    folder: Path, settings: dict[str, Any], named: str
) -> None:
    came, told = played(folder, [[{"prompt": [5], "tokens": 1}]], "config.toml", settings)
    assert came is None and "guards do not go together with" in told and named in told


def test_what_no_cpu_runs_is_refused_by_the_front_end(folder: Path) -> None:
    # it would ask nobody, and serve without guards
    code = (
        "from server.vllm import register; register()\n"
        "from tests.vllm.engine.test_supported import engine\n"
        "from vllm.v1.engine.input_processor import InputProcessor\n"
        "InputProcessor(engine('FULL'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(folder / "config.toml"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "guards do not go together with CUDA graphs of whole prompts" in done.stderr


def test_a_guard_of_another_model_keeps_the_engine_from_starting(folder: Path) -> None:
    other = Artifact.load(folder / "firm.safetensors")
    about = other.meta.model.model_copy(update={"fingerprint": "f" * 64})
    Artifact(other.meta.model_copy(update={"model": about}), other.tensors).save(
        folder / "foreign.safetensors"
    )
    (folder / "foreign.toml").write_text(
        CONFIG.replace("firm.safetensors", "foreign.safetensors"), "utf-8"
    )
    came, told = played(folder, [[{"prompt": [5], "tokens": 1}]], "foreign.toml", {})
    assert came is None and "was fitted on" in told
