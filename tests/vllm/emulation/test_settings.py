"""Processes are told what to emulate, and those without vLLM are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.vllm.emulation.settings import Settings, asked, environment


def test_what_is_asked_for_is_what_a_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("v2", graphs=True, asynchronous=True, hook="a:b")
    before = {"PYTHONPATH": f"/one{os.pathsep}/two"}
    made = environment(settings, before)
    assert made["PYTHONPATH"].split(os.pathsep)[1:] == ["/one", "/two"]
    assert made["VLLM_USE_V2_MODEL_RUNNER"] == made["TRITON_INTERPRET"] == "1"
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    assert asked() == settings


def test_the_v1_runner_needs_no_kernels_of_triton() -> None:
    made = environment(Settings("v1"), {})
    assert made["VLLM_USE_V2_MODEL_RUNNER"] == "0" and "TRITON_INTERPRET" not in made
    assert "VLLM_CPU_CI_ENV" not in made


def test_another_runner_is_refused() -> None:
    with pytest.raises(ValueError, match="'v1' or 'v2', not 'v3'"):
        environment(Settings("v3"), {})


def test_a_process_that_asks_for_nothing_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMULATED_VLLM", raising=False)
    assert asked() is None


def test_a_process_that_does_not_import_vllm_is_left_alone() -> None:
    program = "import sys; print([m for m in ('torch', 'tests', 'triton') if m in sys.modules])"
    made = os.environ | environment(Settings("v2", graphs=True))
    done = subprocess.run(
        [sys.executable, "-c", program], env=made, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
