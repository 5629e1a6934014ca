"""`guard doctor`: what is installed, what fits, what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from guard.cli import app
from guard.commands.doctor import machine, models, packages
from guard.commands.doctor.models import GIB, weights_bytes

LINES = [
    "base>=1",
    "fast>=2; extra == 'serve'",
    "inference-guard[screens]; extra == 'serve'",
    "seen>=1,<2; extra == 'screens'",
    "windows-only; extra == 'serve' and sys_platform == 'win32'",
    "vllm<0.34,>=0.32; extra == 'vllm'",
]


class Metadata:
    def get_all(self, key: str) -> list[str]:
        return LINES if key == "Requires-Dist" else ["serve", "screens", "vllm", "dev"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    versions: dict[str, str] = {"fast": "2.1", "seen": "1.5"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "metadata", lambda name: Metadata())
    monkeypatch.setattr(packages, "version", version)
    return versions


def found(needed: str | None = None) -> Mapping[str, tuple[str, str]]:
    return {f.subject: (f.status, f.found) for f in packages.extra_findings(needed)}


def test_an_extra_is_complete_where_all_that_it_names_is_there(installed: dict[str, str]) -> None:
    assert found() == {
        "extra screens": ("ok", "complete"),
        "extra serve": ("ok", "complete"),
        "extra vllm": ("note", "not there: vllm"),
    }


def test_what_a_nested_extra_lacks_is_named_with_the_version_that_is_there(
    installed: dict[str, str],
) -> None:
    installed["seen"] = "2.0"
    assert found("serve")["extra serve"] == ("missing", "not there: seen<2,>=1 (it is 2.0)")
    assert found("vllm")["extra serve"][0] == "note"
    (remedy,) = {f.remedy for f in packages.extra_findings(None) if f.subject == "extra serve"}
    assert remedy == 'pip install "inference-guard[serve]"'


@pytest.mark.parametrize(
    ("version", "registered", "status", "text"),
    [
        ("0.33.1", True, "ok", "vLLM 0.33.1, plugin registered"),
        ("0.33.1", False, "missing", "vLLM 0.33.1, plugin not registered"),
        ("0.40.0", True, "missing", "vLLM 0.40.0 is not one it is for"),
    ],
)
def test_the_plugin(
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    registered: bool,
    status: str,
    text: str,
) -> None:
    assert packages.plugin_finding() is None
    installed["vllm"] = version
    monkeypatch.setattr(packages, "entry_points", lambda **_: ("point",) if registered else ())
    finding = packages.plugin_finding()
    assert finding is not None and (finding.status, finding.found) == (status, text)


def saved(folder: Path, values: int) -> Path:
    folder.mkdir()
    save_file({"w": np.zeros(values, np.float32)}, str(folder / "a.safetensors"))
    save_file({"b": np.zeros(values, np.float16)}, str(folder / "b.safetensors"))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("dtype", "quantization", "each"),
    [
        (None, None, (4, 2)),
        ("auto", None, (4, 2)),
        ("float32", None, (4, 4)),
        ("bfloat16", None, (2, 2)),
        ("float32", "int8", (1, 1)),
        ("float32", "nf4", (0.5, 0.5)),
    ],
)
def test_weights_are_counted_in_the_dtype_of_serving(
    tmp_path: Path, dtype: str | None, quantization: str | None, each: tuple[float, float]
) -> None:
    folder = saved(tmp_path / "m", 1000)
    assert weights_bytes(folder, dtype, quantization) == 1000 * sum(each)


def test_a_damaged_file_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "b.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0[1, 2, ]")
    assert weights_bytes(tmp_path, None, None) == 0


def test_a_model_that_does_not_fit_is_missing_and_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", 1000)
    config = tmp_path / "config.toml"
    config.write_text(f'[[models]]\nname = "big"\nsource = "{folder}"\ndtype = "float32"\n')
    for memory, rc, status in ((GIB, 0, "ok"), (9_000, 1, "missing")):
        monkeypatch.setattr(models, "memory_bytes", lambda memory=memory: memory)
        monkeypatch.setattr(models, "device_bytes", list)
        done = CliRunner().invoke(app, ["doctor", "-c", str(config), "--json"])
        assert done.exit_code == rc, done.output
        (line,) = (f for f in json.loads(done.stdout) if f["subject"] == "model big")
        assert line["status"] == status and ("nf4" in line["remedy"]) is bool(rc)


def run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_configuration_that_does_not_hold_and_a_source_that_is_not_there(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[server]\nport = 'x'\n")
    rc, lines = run("-c", config)
    assert rc == 1 and any("port" in line["found"] for line in lines if "file" in line["subject"])
    config.write_text('[[models]]\nname = "m"\nsource = "./nowhere"\n')
    rc, lines = run("-c", config)
    (line,) = (line for line in lines if line["subject"] == "model m")
    assert rc == 1 and line["status"] == "missing" and "nowhere" in line["found"]


def test_an_unknown_extra_is_one_line() -> None:
    failed = CliRunner().invoke(app, ["doctor", "--for", "everything"])
    assert failed.exit_code == 1 and "no such extra: give one of " in failed.stderr
    assert failed.stderr.strip().count("\n") == 0


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes() == whole > GIB
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert machine.memory_bytes() == GIB


def test_few_open_files_and_a_cache_that_cannot_be_written_are_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    lines = {f.subject: f for f in machine.machine_findings()}
    assert lines["open files"].status == "note" and "ulimit -n" in lines["open files"].remedy
    assert lines["cache"].status == "note" and "GUARD_CACHE" in lines["cache"].remedy
