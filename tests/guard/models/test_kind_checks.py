"""A model of a wrong kind is refused by its files, with the command that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.config.kinds import Kind
from guard.errors import ModelError
from guard.models.kind_checks import kind_of_files, kind_of_model, source_of
from tests.guard.commands.running import run

FILES: dict[str, tuple[str, dict[str, Any], Kind | None]] = {
    "chat": (
        "config.json",
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "language",
    ),
    "decoder": (
        "config.json",
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        "language",
    ),
    "sentences": ("config.json", {"model_type": "bert", "architectures": ["BertModel"]}, "text"),
    "screens": ("encoder.onnx", {}, "text"),
    "pictures": ("model_index.json", {}, "images"),
    "unknown": ("config.json", {}, None),
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, (file, content, _) in FILES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / file).write_text(json.dumps(content))
    return tmp_path


def test_files_tell_the_kind(models: Path) -> None:
    assert {name: kind_of_files(models / name) for name in FILES} == {
        name: kind for name, (_, _, kind) in FILES.items()
    }
    assert kind_of_files(Path("owner/name")) is None


def test_a_source_of_no_known_kind_is_left_to_the_loader_of_language_models(models: Path) -> None:
    kinds = {name: kind_of_model(str(models / name)) for name in ("pictures", "chat", "unknown")}
    assert kinds == {"pictures": "images", "chat": "language", "unknown": "language"}
    assert kind_of_model("nowhere at all") == "language"


def test_what_files_do_not_tell_is_left_to_the_loader(models: Path) -> None:
    assert source_of(str(models / "unknown"), "language") == str(models / "unknown")
    assert source_of("owner/name", "images") == "owner/name"


def test_a_wrong_one_is_refused_with_its_command(models: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is an image model, .* is a language model: .*guard fit cgce"
    ):
        source_of(str(models / "pictures"), "language")


CONCEPT = {
    "name": "object/knife",
    "phrases": {"train": ["a knife"]},
    "hard_negatives": ["a", "b", "c", "d", "e", "f"],
    "replacements": ["a spoon"],
}


@pytest.mark.parametrize("method", ["cgce", "latents", "irece", "uce", "safree"])
def test_fits_of_images_refuse_a_language_model(models: Path, method: str) -> None:
    (models / "knife.json").write_text(json.dumps(CONCEPT))
    files = ("--concept-file", models / "knife.json", "--out", models / "g.safetensors")
    result = run("fit", method, "--model", models / "chat", *files)
    assert result.exit_code == 1 and "guard fit steer --model" in result.stderr
    result = run("fit", method, "--model", models / "sentences", *files)
    assert result.exit_code == 1 and "guard fit screen --model" in result.stderr


def test_fits_of_language_models_refuse_others(models: Path) -> None:
    (models / "forget.jsonl").write_text('{"prompt": "p", "facts": ["f"]}')
    files = ("--forget", models / "forget.jsonl", "--out", models / "g.safetensors")
    options = ("--concept", "a/b", *files)
    for name, command in (("pictures", "guard fit cgce"), ("screens", "guard fit screen")):
        result = run("fit", "steer", "--model", models / name, *options)
        assert result.exit_code == 1 and command in result.stderr, result.output
