"""`guard rebind` as it is typed: what it writes, what it refuses, and what serves the result."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from guard.artifact import Artifact
from guard.config.schema import load_config
from guard.errors import GuardFailed
from guard.plans.language import LanguagePlans
from steering.engines.transformers.loading.models import load_language_model
from tests.guard.commands.running import run
from tests.guard.fitting.rebinding import copies

pytestmark = pytest.mark.usefixtures("plain_terminal")

BOUNDS = ("--max-leaks", "0.2", "--max-drop", "0.2", "--prompts", str(copies.COUNT))
CONFIG = """
[[models]]
name = "copy"
source = "{folder}/rounded"
[[guards]]
name = "topic"
artifact = "{artifact}"
[policies.topic]
guards = ["topic"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the guard of one of them beside its prompts."""
    base = tmp_path_factory.mktemp("rebind")
    models = copies.models(base)
    copies.write_prompts(base / "data")
    copies.fitted(models["fitted"], base / "data").save(base / "data" / "topic.safetensors")
    return base


@pytest.fixture(scope="module")
def bound(folder: Path) -> dict[str, Any]:
    """What the command prints for the copy on which the guard holds."""
    done = _rebind(folder, "rounded", *BOUNDS, "--json")
    assert done.exit_code == 0, done.output
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def _rebind(folder: Path, model: str, *more: str | Path) -> Any:
    return run("rebind", folder / "data" / "topic.safetensors", "--model", folder / model, *more)


def _error(done: Any) -> str:
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return str(line)


def test_it_writes_an_artifact_that_names_its_parent(folder: Path, bound: dict[str, Any]) -> None:
    parent = Artifact.load(folder / "data" / "topic.safetensors")
    written = Artifact.load(bound["artifact"])
    assert bound["artifact"] == str(folder / "data" / "topic.rounded.safetensors")
    assert bound["digest"] == written.digest and bound["refused"] == []
    assert bound["parent"] == parent.digest
    assert written.meta.parent and written.meta.parent.digest == parent.digest
    inspected = json.loads(run("inspect", bound["artifact"], "--json").stdout)
    assert inspected["parent"]["model"]["fingerprint"] == parent.meta.model.fingerprint
    assert "parent" not in json.loads(
        run("inspect", folder / "data" / "topic.safetensors", "--json").stdout
    )


def test_what_it_writes_is_served_and_the_parent_is_not(
    folder: Path, bound: dict[str, Any]
) -> None:
    model, *_ = load_language_model(str(folder / "rounded"), device="cpu")
    path = folder / "config.toml"
    for artifact in (folder / "data" / "topic.safetensors", bound["artifact"]):
        path.write_text(CONFIG.format(folder=folder, artifact=artifact), "utf-8")
        plan = LanguagePlans(load_config(path), model, name="copy")["topic"]
        checked = run("check", path)
        if artifact == bound["artifact"]:
            plan.require_whole()
            assert "rebind" not in checked.stderr
        else:
            with pytest.raises(GuardFailed, match=f"run `guard rebind {artifact} --model "):
                plan.require_whole()
            assert "copy of that model run `guard rebind`" in checked.stderr


def test_it_prints_what_it_counted(folder: Path) -> None:
    done = _rebind(folder, "rounded", *BOUNDS, "--out", folder / "again.safetensors")
    assert done.exit_code == 0, done.output
    for said in ("recheck", "prompts missed", "at most (95 %)", "at the new threshold", "wrote"):
        assert said in done.output


def test_a_guard_that_does_not_hold_is_not_written(folder: Path) -> None:
    out = folder / "noisy.safetensors"
    done = _rebind(folder, "noisy", *BOUNDS, "--json", "--out", out)
    line = _error(done)
    assert "does not hold on" in line and "guarded answers leak" in line
    report = json.loads(done.stdout)
    assert report["refused"] and "artifact" not in report
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--data", "{folder}"), "has no forget.jsonl and no retain.jsonl: give --data"),
        (("--out", "guard.bin"), "ends in .safetensors"),
        (("--out", "{folder}/data/topic.safetensors"), "is the artifact itself"),
        (("--quantization", "fp8"), "transformers quantises to int8 or nf4"),
        (("--engine", "vllm", "--device", "cpu"), "vLLM chooses the device itself"),
        (("--model", "{folder}/fitted"), "fits '{folder}/fitted' already"),
        (("--model", "no-such-model"), "no added model"),
        pytest.param(
            ("--engine", "vllm"),
            "needs vllm: pip install 'inference-guard[vllm,fit]'",
            marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed"),
        ),
    ],
)
def test_a_fault_is_reported_in_one_line(folder: Path, more: tuple[str, ...], said: str) -> None:
    done = _rebind(folder, "rounded", *(part.format(folder=folder) for part in more))
    assert said.format(folder=folder) in _error(done)


def test_prompts_are_asked_for_where_none_lie_beside_the_artifact(
    folder: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(folder / "data" / "topic.safetensors", tmp_path)
    line = _error(run("rebind", alone, "--model", folder / "rounded"))
    assert "beside the artifact: give --data, a folder with the forget and retain prompts" in line


def test_splits_without_prompts_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        text = (folder / "data" / f"{name}.jsonl").read_text("utf-8")
        (tmp_path / f"{name}.jsonl").write_text(text.replace('"test"', '"train"'), "utf-8")
    line = _error(_rebind(folder, "rounded", "--data", tmp_path))
    assert "there are no forget prompts in the test split" in line
