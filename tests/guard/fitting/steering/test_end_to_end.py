"""From two files to an artifact, a policy and a report, as a user goes it; the model is tiny.

Random weights know nothing: this shows that the parts fit together, not that a guard is any good.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.fitting.judgement import DRAFT
from tests.steering.tiny import LAYERS, VOCABULARY, WIDTH, tiny_model

TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}w2"
CONFIG = """
[[models]]
name = "tiny"
source = "{folder}/model"
[[guards]]
name = "topic"
artifact = "{folder}/topic.safetensors"
[policies.topic]
guards = ["topic"]
"""


def _words(*numbers: int) -> str:
    return " ".join(f"w{3 + number % (VOCABULARY - 3)}" for number in numbers)


def _rows(count: int, **more: Any) -> list[dict[str, Any]]:
    splits = ("train", "validation", "test")
    start = 7 * len(json.dumps(more))
    return [
        {"prompt": _words(start + i, 5 * i, start * i), "split": splits[i % 3], **more}
        for i in range(count)
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_tokenizer(folder: Path) -> None:
    """One token a word."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="w0", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)


def write_topic(folder: Path) -> None:
    """The forget and retain files of a topic."""
    folder.mkdir()
    _write(folder / "forget.jsonl", _rows(24, pattern="w"))
    _write(folder / "retain.jsonl", _rows(30, kind="far") + _rows(30, kind="near"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and the two files. Whatever the model says is a leak."""
    base = tmp_path_factory.mktemp("way")
    save_tokenizer(base / "model")
    tiny_model().save_pretrained(base / "model")
    write_topic(base / "data")
    (base / "config.toml").write_text(CONFIG.format(folder=base))
    return base


def _guard(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _fit(folder: Path, **more: object) -> Result:
    options = {
        "model": folder / "model",
        "concept": "topic/test",
        "forget": folder / "data" / "forget.jsonl",
        "retain": folder / "data" / "retain.jsonl",
        "out": folder / "topic.safetensors",
        "fpr": 0.4,
        "near-fpr": 0.4,
    } | {name.replace("_", "-"): value for name, value in more.items()}
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    return _guard("fit", "steer", *flat)


def test_a_draft_without_a_retain_file_takes_the_bank(folder: Path) -> None:
    done = _guard(
        "fit", "steer", "--quick", "--model", folder / "model", "--concept", "topic/test",
        "--forget", folder / "data" / "forget.jsonl", "--out", folder / "bank.safetensors",
        "--fpr", 0.4, "--near-fpr", 0.4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "retain prompts are of the bank" in done.stderr
    report = json.loads((folder / "bank.report.json").read_text())
    assert report["judgement"].endswith(DRAFT)
    # as many as the rates need, and no threshold for generated tokens
    assert report["calibration"]["retain_prompts"] == 8 and report["settings"]["recheck"] is None
    (folder / "bank.safetensors").unlink()


def test_fit_then_evaluate(folder: Path) -> None:
    fitted = _fit(folder)
    assert fitted.exit_code == 0, fitted.output
    artifact = Artifact.load(folder / "topic.safetensors")
    settings = artifact.meta.settings
    assert artifact.meta.model.layers == LAYERS
    assert artifact.tensors["gates"].shape == (len(settings["sense_layers"]), WIDTH)  # type: ignore[arg-type]
    assert artifact.tensors["directions"].shape == (len(settings["act_layers"]), WIDTH)  # type: ignore[arg-type]
    report = json.loads((folder / "topic.report.json").read_text())
    assert sum(trial["chosen"] for trial in report["trials"]) == 1
    assert report["calibration"]["bare_leaks"] == 8
    threshold, scores = settings["threshold"], report["scores"]
    assert len(report["missed"]) == sum(score <= threshold for score in scores["forget"])
    assert len(report["hit"]) == sum(
        s > threshold for kind in ("far", "near") for s in scores[kind]
    )
    asked = [json.loads(line) for line in (folder / "data" / "forget.jsonl").open()]
    held_out = [row["prompt"] for row in asked if row["split"] == "validation"]
    missed = {p: s for p, s in zip(held_out, scores["forget"], strict=True) if s <= threshold}
    assert [row["prompt"] for row in report["missed"]] == sorted(missed, key=lambda p: -missed[p])
    assert report["threshold"] == threshold and report["judgement"]
    assert all(row["score"] > threshold for row in report["hit"])
    assert report["judgement"] in fitted.stdout.splitlines()
    page = (folder / "topic.report.html").read_text()
    assert "Leaks against retain damage" in page and page.count("data:image/svg+xml") == 2
    assert "http://" not in page and "https://" not in page

    checked = _guard("check", folder / "config.toml")
    assert checked.exit_code == 0, checked.output
    measured = _guard(
        "eval", "unlearn", folder / "data", "--config", folder / "config.toml", "--policy",
        "topic", "--out", folder, "--json",
    )  # fmt: skip
    assert measured.exit_code == 0, measured.output
    found = json.loads((folder / "topic.unlearn.json").read_text())
    assert found["known_to_the_bare_model"] == 8
    assert len(found["rewordings"]) == 10
    assert "Ten answers" in (folder / "topic.unlearn.html").read_text()


def test_the_same_seed_gives_the_same_artifact(folder: Path) -> None:
    first, second = folder / "one.safetensors", folder / "two.safetensors"
    assert _fit(folder, out=first).exit_code == _fit(folder, out=second).exit_code == 0
    assert first.read_bytes() == second.read_bytes()


def test_pairs_of_answers_give_another_direction(folder: Path) -> None:
    pairs = folder / "pairs.jsonl"
    _write(
        pairs,
        [{"prompt": _words(i), "erasure": _words(50), "recall": _words(9, i)} for i in (1, 2)],
    )
    plain, paired = folder / "plain.safetensors", folder / "paired.safetensors"
    assert _fit(folder, out=plain).exit_code == 0
    assert _fit(folder, out=paired, pairs=pairs).exit_code == 0
    one, two = Artifact.load(plain), Artifact.load(paired)
    assert (one.tensors["gates"] == two.tensors["gates"]).all()
    assert not np.allclose(one.tensors["directions"][:1], two.tensors["directions"][:1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": "guard.bin"}, "ends in .safetensors"),
        ({"fpr": 0.001}, "needs 1999 far retain prompts"),
        ({"forget": "gone.jsonl"}, "gone.jsonl: cannot be read"),
        ({"model": "no-such-model"}, "no added model"),
        ({"engine": "vllm", "device": "cpu"}, "vLLM chooses the device itself"),
        pytest.param(
            {"engine": "vllm"},
            "needs vllm: pip install 'inference-guard[vllm,fit]'",
            marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed"),
        ),
    ],
)
def test_a_fault_is_reported_in_one_line(
    folder: Path, change: dict[str, object], said: str
) -> None:
    result = _fit(folder, **change)
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert said in line


def test_a_topic_that_the_model_does_not_know_cannot_be_fitted(folder: Path) -> None:
    path = folder / "unknown.jsonl"
    _write(path, _rows(24, facts=["Ankh-Morpork"]))
    result = _fit(folder, forget=path)
    assert result.exit_code == 1
    assert "there is nothing to forget" in result.output


def test_an_unknown_policy_is_refused_before_the_model_is_loaded(folder: Path) -> None:
    result = _guard(
        "eval", "unlearn", folder / "data", "--config", folder / "config.toml", "--policy", "other"
    )
    assert result.exit_code == 1
    assert "no policy 'other'" in result.output
