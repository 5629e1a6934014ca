"""`guard explain` on reports of every kind: what is good, what is bad, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guard.commands.running import run

FIT: dict[str, Any] = {
    "method": "steer",
    "concept": "character/harry-potter",
    "judgement": "usable draft: misses 'Who?'; add prompts",
    "settings": {},
    "calibration": {
        "false_positive_rate": 0.01,
        "near_false_positive_rate": 0.05,
        "forget_fired_on_prompt": 0.5,
        "far_fired_on_prompt": 0.005,
        "near_fired_on_prompt": 0.2,
        "leak_rate": 0.0,
        "bare_perplexity": 2.0,
        "guarded_perplexity": 2.5,
    },
    "threshold": 0.6,
    "missed": [{"prompt": "Who?\u001b[31m", "kind": "forget", "score": 0.4}],
    "hit": ["as old reports have it"],
}
REPOSITORY = Path(__file__).parents[3]


def explained(folder: Path, content: object, *options: str) -> Any:
    path = folder / "g.report.json"
    path.write_text(json.dumps(content), "utf-8")
    return run("explain", path, *options)


def section(output: str, title: str) -> str:
    return output.partition(f"\n{title}:\n")[2].partition("\n\n")[0]


def test_a_fit_in_words(tmp_path: Path) -> None:
    told = explained(tmp_path, FIT)
    assert told.exit_code == 0, told.output
    good, bad = section(told.stdout, "Good"), section(told.stdout, "Bad")
    assert "0.0% of the answers in which the bare model tells a fact" in good
    # against the rate that the fit was asked for
    assert "0.5% of the held-out prompts about other things fire" in good and "at most 1%" in good
    assert "1.25 is the perplexity of guarded answers" in good
    assert "50.0% of the held-out forget prompts fire" in bad and "at least 90%" in bad
    assert "20.0% of the held-out near misses fire" in bad and "at most 5%" in bad
    steps = section(told.stdout, "What to do next")
    assert "add paraphrases of the missed prompts" in steps and "lower --near-fpr" in steps
    assert "'Who?\\x1b[31m' (score 0.400, threshold 0.600)" in told.stdout
    assert "as old reports have it" in told.stdout and "\x1b" not in told.stdout
    assert "Judgement: usable draft" in told.stdout


def test_the_same_as_json_and_by_its_artifact(tmp_path: Path) -> None:
    explained(tmp_path, FIT)
    told = json.loads(run("explain", tmp_path / "g.safetensors", "--json").stdout)
    assert told["judgement"] == FIT["judgement"] and len(told["bad"]) == 2
    assert len(told["next"]) == 2


def test_where_all_is_good_it_says_what_comes_next(tmp_path: Path) -> None:
    fine = {**FIT, "calibration": {"leak_rate": 0.0}, "missed": [], "hit": []}
    told = explained(tmp_path, fine)
    assert "guard add" in section(told.stdout, "What to do next") and "\nBad:" not in told.stdout


def test_guards_from_a_name(tmp_path: Path) -> None:
    content = {
        "concept": "Frankenstein",
        "judgement": "usable",
        "calibration": {},
        "figures": {"fired_by_name": "87.5% (7/8; 52.9% to 97.8%)", "fired_far": "0.0% (0/9)"},
        "tried": [],
    }
    told = explained(tmp_path, content)
    assert "guard new" in told.stdout and "--alias" in section(told.stdout, "What to do next")
    assert "0.0% of the questions about other topics" in section(told.stdout, "Good")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("harry-potter/harry-potter.unlearn.json", "guard eval unlearn"),
        ("emoji/suite.latents.pictures.json", "guard eval images"),
        ("emoji/m-erasure.m-erasure.json", "guard eval m-erasure"),
        ("portraits/forget-5.mllmu.json", "guard eval mllmu"),
        ("harry-potter/steer.report.json", "guard fit"),
        ("emoji/fitted/knife-cgce.report.json", "guard fit"),
        ("screens/fitted/weapons.report.json", "guard fit"),
    ],
)
def test_shipped_reports(file: str, command: str) -> None:
    path = REPOSITORY / "examples" / file
    told = run("explain", path, "--json")
    assert told.exit_code == 0, told.output
    content = json.loads(told.stdout)
    assert f"`{command}`" in content["report"] and content["good"] and content["next"]
    figures = json.loads(path.read_text("utf-8")).get("figures", [])
    missed = [figure for figure in figures if figure["reached"] is False]
    if figures:
        assert len(content["bad"]) == len(missed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "is no report"),
        ('{"a": 1}', "is no report of a fit or an evaluation: give"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    told = run("explain", path)
    assert told.exit_code == 1 and message in told.stderr
    assert "cannot be read" in run("explain", tmp_path / "missing.json").stderr


def test_a_screen_of_images_is_said_to_read_images(tmp_path: Path) -> None:
    shares = {name: {"all": {"value": 0.5}} for name in ("recall", "disguised_recall")}
    content = {"concept": "style/noto", "settings": {}, "calibration": {"tested": shares}}
    images = explained(tmp_path, content | {"method": "image-screen"}).stdout
    assert "50.0% of the unsafe images of collections that were held out fire" in images
    assert "50.0% of the unsafe images fire although they are altered" in images
    assert "add unsafe images of the missed kind" in images and " text" not in images
    texts = explained(tmp_path, content | {"method": "screen"}).stdout
    assert "add unsafe texts of the missed kind" in texts and " image" not in texts
