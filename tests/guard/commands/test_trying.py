"""`guard try`: a guard on one prompt, without a configuration or a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from guard.cli import app
from tests.guard.attach.language import language_config
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.server.tiny_pipeline import save_guards, save_pipeline
from tests.steering.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("try")
    save_guards(path, save_pipeline(path / "model"))
    return path


def _try(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["try", *map(str, arguments)])


def test_both_images_are_in_one_file(folder: Path) -> None:
    out = folder / "both.png"
    guard, model = folder / "knife.safetensors", folder / "model"
    tried = _try(guard, "a knife", "--model", model, "--out", out, "--json")
    assert tried.exit_code == 0, tried.output
    (told,) = json.loads(tried.stdout)["guards"]
    assert told["guard"] == "knife" and told["fired"]
    sheet = Image.open(out)
    half = sheet.width // 2
    bare, guarded = sheet.crop((0, 0, half, sheet.height)), sheet.crop((half, 0, *sheet.size))
    assert bare.tobytes() != guarded.tobytes()
    assert sheet.height >= 256
    tried = _try(guard, "a cat", "--model", model, "--out", out)
    assert tried.exit_code == 0 and "no guard fired; the nearest is knife" in tried.stdout
    sheet = Image.open(out)
    bare, guarded = sheet.crop((0, 0, half, sheet.height)), sheet.crop((half, 0, *sheet.size))
    assert bare.tobytes() == guarded.tobytes()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, an artifact that fires on half of all prompts, and lists of guards."""
    path = tmp_path_factory.mktemp("text")
    model = tiny_model()
    model.save_pretrained(path / "model")
    save_tokenizer(path / "model")
    language_config(path, model)
    (path / "list.toml").write_text('[[guards]]\nname = "g"\nartifact = "guard.safetensors"\n')
    (path / "none.toml").write_text("[policies.p]\nguards = []\n")
    (path / "broken.toml").write_text("[[guards\n")
    return path


def test_both_answers_stand_side_by_side(text: Path) -> None:
    for guard in ("guard.safetensors", "list.toml"):
        found = {}
        for word in range(3, 40):
            tried = _try(
                text / guard, f"w{word}", "--model", text / "model", "--tokens", 6, "--json"
            )
            assert tried.exit_code == 0, tried.output
            told = json.loads(tried.stdout)
            found[told["guards"][0]["fired"]] = told["bare"] == told["guarded"]
            if len(found) == 2:
                break
        assert found == {True: False, False: True}
    tried = _try(text / "guard.safetensors", "w5 w6", "--model", text / "model")
    assert tried.exit_code == 0 and "bare" in tried.stdout and "guard" in tried.stdout


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ("none.toml", "lists no guards"),
        ("broken.toml", "is no list of guards as a fit writes it"),
        ("nowhere.toml", "cannot be read: No such file"),
        ("nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_a_guard_that_is_none_is_one_line(text: Path, guard: str, message: str) -> None:
    tried = _try(text / guard, "w5", "--model", text / "model")
    assert tried.exit_code == 1 and message in tried.output
    assert "Traceback" not in tried.output


def test_the_model_is_that_of_the_fit(text: Path) -> None:
    tried = _try(text / "guard.safetensors", "w5")
    assert tried.exit_code == 1 and "'tiny'" in tried.output


def test_a_language_model_may_be_smaller(folder: Path, text: Path) -> None:
    scores = {}
    for dtype in ("float32", "bfloat16"):
        asked = (text / "guard.safetensors", "w5 w6", "--model", text / "model", "--tokens", 2)
        tried = _try(*asked, "--dtype", dtype, "--json")
        assert tried.exit_code == 0, tried.output
        scores[dtype] = json.loads(tried.stdout)["guards"][0]["score"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.1, abs=0.1)
    assert scores["bfloat16"] != scores["float32"]
    tried = _try(
        folder / "knife.safetensors", "a knife", "--model", folder / "model", "--dtype", "bfloat16"
    )
    assert tried.exit_code == 1 and "--dtype bfloat16: is for language models" in tried.output
