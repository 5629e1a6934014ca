"""Fits with images, as a user goes the way: two people by portrait and by name, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.fitting.steering.asking import prompt_of
from guard.models.chat import TransformersChat
from steering.hidden.rows import RowGuard
from steering.methods.fitted import FittedGuard
from steering.methods.steer import bank_of, loaded
from tests.guard.fitting.steering.seeing import (
    COLOURS,
    OTHERS,
    portrait,
    seeing_chat,
    silent,
    write_people,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("seeing")
    seeing_chat(base / "model")
    write_people(base / "data")
    return base


def _fit(folder: Path, *flags: str, **more: object) -> Result:
    options = {
        "model": folder / "model",
        "concept": "people/two",
        "forget": folder / "data" / "forget.jsonl",
        "retain": folder / "data" / "retain.jsonl",
        "out": folder / "two.safetensors",
        "fpr": 0.3,
        "near-fpr": 0.3,
        "perturb-steps": 2,
    } | {name.replace("_", "-"): value for name, value in more.items()}
    flat = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(app, ["fit", "steer", *flags, *flat])


def _readings(
    chat: TransformersChat, paths: list[Path], prompts: list[Any]
) -> list[dict[str, float]]:
    """How far the scores of the guards in `paths` are over their thresholds."""
    artifacts = {path.stem: Artifact.load(path) for path in paths}
    guards = [loaded(FittedGuard(n, a.tensors, a.meta.settings)) for n, a in artifacts.items()]
    rows = [
        RowGuard(name, artifact.meta.settings["threshold"], 1.0, acts=False)  # type: ignore[arg-type]
        for name, artifact in artifacts.items()
    ]
    answers = chat.answer(
        prompts, max_tokens=1, what="", progress=silent, bank=bank_of(guards), guards=rows
    )
    return [
        {name: reading.score - reading.threshold for name, reading in answer.readings.items()}
        for answer in answers
    ]


def test_a_fit_with_images_catches_the_people_and_leaves_the_others(folder: Path) -> None:
    fitted = _fit(folder, parts="both")
    assert fitted.exit_code == 0, fitted.output
    report = json.loads((folder / "two.report.json").read_text())
    assert {gate["tokens"] for gate in report["gates_tried"]} == {"all", "text", "image", "last"}
    recalls = [gate["recall"] for gate in report["gates_tried"]]
    assert report["calibration"]["forget_fired_on_prompt"] == max(recalls) >= 0.7
    assert set(report["calibration"]["forget_fired_by_kind"]) == {"image", "text"}
    assert all(each["after"] < each["before"] for each in report["perturbed"])
    page = (folder / "two.report.html").read_text()
    assert "Perturbed images" in page and "Gates tried" in page

    chat = seeing_chat(folder / "model")
    forgotten = [chat.prompt("w10 w11 w21", [portrait(c, 900)]) for c in COLOURS.values()]
    kept = [chat.prompt("w10 w11 w21", [portrait(c, 901)]) for c in OTHERS]
    scores = _readings(chat, [folder / "two.safetensors"], [*forgotten, *kept])
    over = [score["two"] > 0 for score in scores]
    assert over[: len(forgotten)] == [True] * len(forgotten)
    assert sum(over[len(forgotten) :]) <= 1  # the rate is 15 % of each kind on prompts


def test_a_gate_of_image_tokens_reads_images_alone(folder: Path) -> None:
    out = folder / "image.safetensors"
    fitted = _fit(folder, out=out, tokens="image", parts="text")
    assert fitted.exit_code == 0, fitted.output
    assert (
        "fires that asks by text alone: fit those rows by themselves, with --apart" in fitted.output
    )
    settings = Artifact.load(out).meta.settings
    assert settings["tokens"] == "image" and settings["recheck"] is None
    chat = seeing_chat(folder / "model")
    red = portrait(COLOURS["w70"], 902)
    prompts = [chat.prompt(text, images) for text, images in (("w10", [red]), ("w70", ()))]
    seen, read = _readings(chat, [out], prompts)
    assert seen["image"] > 0
    assert read["image"] == pytest.approx(-settings["threshold"])  # type: ignore[operator]


def test_one_guard_for_each_subject_tells_them_apart(folder: Path) -> None:
    out = folder / "each.safetensors"
    fitted = _fit(folder, out=out, each="subject", parts="text")
    assert fitted.exit_code == 0, fitted.output
    paths = [folder / f"each-{name}.safetensors" for name in COLOURS]
    assert [Artifact.load(path).meta.concept for path in paths] == [
        f"people/two/{name}" for name in COLOURS
    ]
    calibration = json.loads((folder / "each.report.json").read_text())["calibration"]
    assert calibration["subjects"] == 2
    assert calibration["far_fired_on_prompt"] <= 0.3 / 2
    chat = seeing_chat(folder / "model")
    prompts = [chat.prompt("w10 w11 w21", [portrait(c, 903)]) for c in COLOURS.values()]
    one, two = _readings(chat, paths, prompts)
    assert one["each-w70"] > 0 > one["each-w71"]
    assert two["each-w71"] > 0 > two["each-w70"]

    config = folder / "each-config.toml"
    model = f'[[models]]\nname = "tiny"\nsource = "{folder / "model"}"\n'
    config.write_text(model + (folder / "each.toml").read_text())
    checked = CliRunner().invoke(app, ["check", str(config)])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(("each", "tokens"), [("set", "text"), ("subject", "image")])
def test_no_more_prompts_fire_when_served_than_the_rate_allows(
    folder: Path, each: str, tokens: str
) -> None:
    """The prompt whose score is the threshold has another score there, where states are not kept in
    half precision."""
    out = folder / f"{each}-{tokens}.safetensors"
    fitted = _fit(folder, out=out, each=each, tokens=tokens, parts="text")
    assert fitted.exit_code == 0, fitted.output
    names = [out.stem] if each == "set" else [f"{out.stem}-{name}" for name in COLOURS]
    rows = in_split(read_rows(folder / "data" / "retain.jsonl", RetainPrompt), "validation")
    chat = seeing_chat(folder / "model")
    prompts = [prompt_of(chat, row) for row in rows]
    scores = _readings(chat, [folder / f"{name}.safetensors" for name in names], prompts)
    for near in (False, True):
        over = [
            max(s.values()) > 0 for s, row in zip(scores, rows, strict=True) if row.near == near
        ]
        # half of the rate is for the prompt
        assert sum(over) <= (len(over) + 1) * 0.3 / 2


def test_portraits_and_names_are_fitted_apart_by_one_command(folder: Path) -> None:
    out = folder / "apart.safetensors"
    fitted = _fit(folder, "--apart", out=out, each="subject", parts="both")
    assert fitted.exit_code == 0, fitted.output
    assert "warning" not in fitted.output
    paths = {
        (kind, name): folder / f"apart-{kind}-{name}.safetensors"
        for kind in ("image", "text")
        for name in COLOURS
    }
    tokens = {key: Artifact.load(path).meta.settings["tokens"] for key, path in paths.items()}
    assert all(kind == found for (kind, _), found in tokens.items())
    asked = {}
    for kind in ("image", "text"):
        report = json.loads((folder / f"apart-{kind}.report.json").read_text())
        asked[kind] = set(report["calibration"]["forget_fired_by_kind"])
        assert report["parts"] == {"image": "both", "text": "text"}[kind]
    assert asked == {"image": {"image"}, "text": {"text"}}
    config = folder / "apart-config.toml"
    model = f'[[models]]\nname = "tiny"\nsource = "{folder / "model"}"\n'
    config.write_text(model + (folder / "apart.toml").read_text())
    checked = CliRunner().invoke(app, ["check", str(config)])
    assert checked.exit_code == 0, checked.output
    assert all(path.stem in config.read_text() for path in paths.values())


def test_parts_of_the_direction_add_up(folder: Path) -> None:
    directions = {}
    for parts in ("text", "visual", "both"):
        out = folder / f"{parts}.safetensors"
        fitted = _fit(folder, out=out, parts=parts, tokens="all")
        assert fitted.exit_code == 0, fitted.output
        artifact = Artifact.load(out)
        layers = artifact.meta.settings["act_layers"]
        directions[parts] = dict(zip(layers, artifact.tensors["directions"], strict=True))  # type: ignore[arg-type]
    common = set.intersection(*(set(d) for d in directions.values()))
    assert common
    for layer in common:
        both, summed = directions["both"][layer], directions["text"][layer]
        assert both == pytest.approx(summed + directions["visual"][layer], abs=1e-4)


def test_questions_by_name_are_asked_by_portrait_as_well(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "data" / "forget.jsonl").open()]
    named = [row for row in rows if "image" not in row]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    for name, colour in COLOURS.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(portrait(colour, i)).save(tmp_path / "people" / name / f"{i}.png")
    out = tmp_path / "named.safetensors"
    fitted = _fit(
        folder,
        forget=tmp_path / "forget.jsonl",
        portraits=tmp_path / "people",
        out=out,
        parts="text",
    )
    assert fitted.exit_code == 0, fitted.output
    calibration = json.loads(out.with_suffix("").with_suffix(".report.json").read_text())
    known = sum(row["split"] == "validation" for row in named)
    assert calibration["calibration"]["forget_prompts"] == 2 * known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"portraits": "nowhere"}, "nowhere: is no folder of portraits"),
        ({"tokens": "every"}, "Invalid value for '--tokens'"),
    ],
)
def test_a_fault_is_reported_in_one_line(
    folder: Path, change: dict[str, object], said: str
) -> None:
    result = _fit(folder, **change)
    assert result.exit_code != 0
    assert said in result.output


def test_rows_that_cannot_be_fitted_apart_are_refused(folder: Path, tmp_path: Path) -> None:
    both = _fit(folder, "--apart", tokens="image")
    assert both.exit_code == 1 and "leave out --tokens" in both.output
    rows = (folder / "data" / "forget.jsonl").read_text().splitlines()
    (tmp_path / "forget.jsonl").write_text("\n".join(r for r in rows if "image" not in r) + "\n")
    named = _fit(folder, "--apart", forget=tmp_path / "forget.jsonl")
    assert named.exit_code == 1 and "forget prompts of text alone" in named.output


def test_images_for_a_model_of_text_are_refused(folder: Path, tmp_path: Path) -> None:
    from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
    from tests.steering.tiny import tiny_model

    tiny_model().save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    result = _fit(folder, model=tmp_path / "model")
    assert result.exit_code == 1
    assert "takes text alone" in result.output
