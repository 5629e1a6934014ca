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


@pytest.mark.parametrize(
    ("v2", "graphs", "named"),
    [("True", "NONE", "model runner V2"), ("False", "PIECEWISE", "CUDA graphs")],
)
def test_what_no_cpu_runs_is_refused_by_the_front_end(
    folder: Path, v2: str, graphs: str, named: str
) -> None:
    # it would ask nobody, and serve without guards
    code = (
        "import sys, types; from server.vllm import register; register()\n"
        "from vllm.config import CUDAGraphMode\n"
        "from vllm.v1.engine.input_processor import InputProcessor\n"
        "of = types.SimpleNamespace\n"
        "config = of(model_config=of(runner_type='generate'), kv_transfer_config=None,\n"
        "    weight_transfer_config=None,\n"
        "    parallel_config=of(pipeline_parallel_size=1), speculative_config=None,\n"
        f"    compilation_config=of(cudagraph_mode=CUDAGraphMode.{graphs}),\n"
        f"    use_v2_model_runner={v2})\n"
        "InputProcessor(config)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(folder / "config.toml"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"guards do not go together with {named}" in done.stderr


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
