"""`guard import` for a language model, as a user goes it; the model is tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.commands.importing.command import _LANGUAGE_RATES
from guard.models.chat import TransformersChat
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer, write_topic
from tests.steering.adapters import save_adapter
from tests.steering.tiny import tiny_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("import")
    model = tiny_model()
    save_tokenizer(base / "model")
    model.save_pretrained(base / "model")
    write_topic(base / "data")
    save_adapter(base / "lora", model)
    weight = model.state_dict()[UP]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    save_file({UP: weight + 0.1 * noise}, base / "tuned.safetensors")
    return base


def run(folder: Path, source: str, *more: object, concept: str = "topic/t") -> Result:
    options = ["--base", folder / "model", "--concept", concept, "--out", folder / "g.safetensors"]
    return CliRunner().invoke(app, ["import", str(folder / source), *map(str, [*options, *more])])


def prompts(folder: Path) -> list[object]:
    data = folder / "data"
    return ["--forget", data / "forget.jsonl", "--retain", data / "retain.jsonl"]


def test_an_adapter_behind_a_gate_of_its_own(folder: Path) -> None:
    done = run(folder, "lora", *prompts(folder), "--fpr", 0.4, "--near-fpr", 0.4, "--json")
    assert done.exit_code == 0, done.output
    artifact = Artifact.load(folder / "g.safetensors")
    assert artifact.meta.method == "language-overlay"
    assert artifact.meta.calibration["false_positive_rate"] == 0.4
    report = json.loads(done.stdout)
    assert report["digest"] == artifact.digest and report["settings"]["rereads"] is True


def test_a_gate_is_taken_over_and_the_prompt_stays_as_read(folder: Path) -> None:
    assert run(folder, "lora", "--ungated").exit_code == 0
    (folder / "g.safetensors").rename(folder / "first.safetensors")
    first = Artifact.load(folder / "first.safetensors")
    assert first.meta.settings["threshold"] < 0 and not first.tensors["gates"].any()  # type: ignore[operator]
    done = run(folder, "lora", "--gate", folder / "first.safetensors", "--as-read")
    assert done.exit_code == 0, done.output
    second = Artifact.load(folder / "g.safetensors")
    assert second.meta.settings["rereads"] is False
    assert second.meta.calibration["gate_of"] == first.digest


def test_the_base_may_be_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = TransformersChat.load

    def load(source: str, **how: Any) -> TransformersChat:
        chat = real(source, **how)
        loaded.append(chat.precision)
        return chat

    monkeypatch.setattr(TransformersChat, "load", load)
    done = run(folder, "lora", "--ungated", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert loaded == ["torch.bfloat16"]


def test_whole_weights_are_cut_on_prompts(folder: Path) -> None:
    done = run(folder, "tuned.safetensors", "--ungated", *prompts(folder), "--rank", 2)
    assert done.exit_code == 1 and "--least-share" in done.output
    done = run(
        folder, "tuned.safetensors", "--ungated", *prompts(folder), "--rank", 2, "--least-share", 0
    )
    assert done.exit_code == 0, done.output
    artifact = Artifact.load(folder / "g.safetensors")
    assert artifact.tensors["reads.0"].shape[0] == 2


@pytest.mark.parametrize(
    ("source", "more", "reason"),
    [
        ("lora", [], "give --forget and --retain, prompts on which a gate is fitted, or --gate"),
        ("lora", ["--forget", "f.jsonl"], "--forget and --retain go together"),
        ("lora", ["--ungated", "--gate", "g.safetensors"], "--ungated has no gate"),
        ("lora", ["--ungated", "--concept-file", "c.json"], "--concept-file: for models of images"),
        ("lora", ["--ungated", "--component", "unet"], "--component: for models of images"),
        ("lora", ["--gate", "gone.safetensors"], "does not exist"),
        ("tuned.safetensors", ["--ungated"], "has to be cut to a rank, on prompts"),
        ("nowhere", ["--ungated"], "does not exist"),
    ],
)
def test_faults_are_one_line(folder: Path, source: str, more: list[str], reason: str) -> None:
    done = run(folder, source, *more)
    assert done.exit_code == 1 and reason in done.output
    assert done.output.startswith("error: ") or "error: " in done.stderr
    assert "Traceback" not in done.output


def test_a_language_model_needs_the_name_of_a_concept(folder: Path) -> None:
    out = str(folder / "g.safetensors")
    base = ["--base", str(folder / "model"), "--out", out, "--ungated"]
    done = CliRunner().invoke(app, ["import", str(folder / "lora"), *base])
    assert done.exit_code == 1 and "--concept: is needed for a language model" in done.output
    assert _LANGUAGE_RATES == (0.01, 0.05)
