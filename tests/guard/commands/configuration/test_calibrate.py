"""`guard calibrate`: thresholds of all guards of a policy, in the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from guard.cli import app
from guard.config.schema import load_config
from tests.guard.attach.language import language_config
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.steering.tiny import tiny_model

CONFIG = """
[[models]]
name = "tiny"
source = "./model"

[[guards]]
name = "loud"  # too loud
artifact = "guard.safetensors"
threshold = -1000000.0

[[guards]]
name = "quiet"
artifact = "guard.safetensors"
threshold = 1000000.0

[policies.both]
guards = ["loud", "quiet"]

[[patterns]]
name = "words"
source = "secrets"

[policies.words]
guards = ["words"]
action = "block"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    language_config(tmp_path, model, recheck=0.5)
    (tmp_path / "config.toml").write_text(CONFIG)
    rows = [
        {"prompt": f"a harmless question number {i}", "split": "test" if i % 3 == 0 else "train"}
        for i in range(150)
    ]
    (tmp_path / "retain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def _calibrate(folder: Path, *arguments: object) -> Result:
    common = ("--config", folder / "config.toml", "--fpr", 0.05, "--tokens", 2)
    retain = ("--retain", folder / "retain.jsonl")
    return CliRunner().invoke(app, ["calibrate", *map(str, (*arguments, *common, *retain))])


def test_thresholds_are_written_and_the_rest_stays(folder: Path) -> None:
    done = _calibrate(folder, "both", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [guard["guard"] for guard in report["guards"]] == ["loud", "quiet"]
    assert report["fired_test"][0].startswith("100.0%")
    assert float(report["fired_test"][1].split("%")[0]) <= 15
    text = (folder / "config.toml").read_text()
    assert "# too loud" in text
    loud, quiet = load_config(folder / "config.toml").guards
    assert loud.threshold == report["guards"][0]["threshold"][1] > -1e6
    assert loud.recheck is not True and loud.recheck is not None
    assert loud.recheck >= loud.threshold
    assert quiet.threshold is not None and quiet.threshold >= 1e6
    # what holds is left alone
    again = _calibrate(folder, "both")
    assert again.exit_code == 0 and (folder / "config.toml").read_text() == text


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    done = _calibrate(folder, "both", "--dry-run")
    assert done.exit_code == 0 and "is as it was" in done.stdout
    assert (folder / "config.toml").read_text() == CONFIG


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        ("none", "has no guards"),
        ("words", "no guard inside a language model"),
        ("other", "no policy"),
    ],
)
def test_policies_without_guards_are_refused(folder: Path, policy: str, fault: str) -> None:
    done = _calibrate(folder, policy)
    assert done.exit_code == 1 and fault in done.stderr


def test_prompts_that_judge_are_asked_for(folder: Path) -> None:
    (folder / "retain.jsonl").write_text('{"prompt": "hello"}\n')
    done = _calibrate(folder, "both")
    assert done.exit_code == 1 and "test split" in done.stderr
