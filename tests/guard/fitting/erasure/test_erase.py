"""From a name to guards, on a model whose states are its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import guard
from classifiers.text.patterns.matching import PatternSet
from guard.artifact import Artifact
from guard.cli import app
from guard.config.schema import load_config
from guard.data.bank.bank import topics
from guard.errors import DataError
from guard.fitting.erasure.belonging import Belonging, what_belongs
from guard.fitting.erasure.erase import NEAR, Erasure, fit_erasure
from guard.fitting.erasure.evaluation import Evaluation, evaluate
from guard.fitting.erasure.profile import Profile, profile_path
from guard.fitting.erasure.profiling import compute_profile
from guard.fitting.erasure.report import as_json, belonging_of, judgement
from guard.fitting.judgement import DRAFT
from tests.guard.fitting.erasure.words import WordModel

SILENT: Any = lambda what, total: lambda count=1: None  # noqa: E731
TOLD = {
    "Frankenstein": "Names: Victor Moritz, Henry Clerval and the city of Ingolstadt.",
    "Victor Moritz": "He is in Frankenstein.",
}


@pytest.fixture(scope="module")
def chat() -> WordModel:
    return WordModel(TOLD)


@pytest.fixture(scope="module")
def profile(chat: WordModel) -> Profile:
    return compute_profile(chat, SILENT)  # type: ignore[arg-type]


def _erased(
    chat: WordModel, profile: Profile, name: str, **more: Any
) -> tuple[Belonging, Erasure, Evaluation]:
    belonging = what_belongs(chat, name, more.get("aliases", ()), (), SILENT)  # type: ignore[arg-type]
    erasure = fit_erasure(chat, profile, belonging, SILENT)  # type: ignore[arg-type]
    return belonging, erasure, evaluate(chat, erasure, SILENT)  # type: ignore[arg-type]


def test_a_profile_has_layers_and_a_strength_that_silences(profile: Profile) -> None:
    about = profile.about
    assert len(about.sense_layers) == 2 and max(about.sense_layers) <= min(about.act_layers)
    assert about.strength >= 0.5 and about.figures["reference_leak_rate"] == 0
    assert profile.directions.shape[0] == len(about.act_layers)
    assert profile.held_out.count == 10 * sum(t.split == "validation" for t in topics())
    assert len(profile.centres) == len(topics())


def test_guards_fire_on_the_concept_and_on_what_belongs_to_it(
    chat: WordModel, profile: Profile
) -> None:
    belonging, erasure, evaluation = _erased(chat, profile, "Frankenstein")
    assert {*belonging.terms} == {"Victor Moritz", "Henry Clerval", "Ingolstadt"}
    assert erasure.fit.subjects is not None
    assert erasure.fit.subjects.names == ("Frankenstein", *belonging.terms)
    assert evaluation.fired("name").value == 1 and evaluation.fired("term").value == 1
    assert evaluation.fired("far").value <= 0.02 and evaluation.fired("near").value <= 0.1
    assert evaluation.leaks.total > 0 and evaluation.leaks.value == 0
    assert judgement(erasure, evaluation) == "usable"
    # each prompt has the score of the gate that fired, or came nearest to it
    for each in evaluation.tried:
        assert each.score is not None and each.threshold is not None
        assert (each.score > each.threshold) == each.fired
    report = as_json(erasure, evaluation, 1.0)
    assert report["missed"] == []
    assert len(report["hit"]) == sum(evaluation.fired(way).count for way in ("near", "far"))


def test_a_draft_tries_fewer_innocent_prompts_and_says_so(
    chat: WordModel, profile: Profile
) -> None:
    belonging, erasure, whole = _erased(chat, profile, "Frankenstein")
    draft = evaluate(chat, erasure, SILENT, draft=True)  # type: ignore[arg-type]
    assert draft.of("name") == whole.of("name")
    innocent = [each for each in whole.tried if each.way in {"near", "far"}]
    assert [each for each in draft.tried if each.way in {"near", "far"}] == innocent[::5]
    assert judgement(erasure, draft) == f"usable; {DRAFT}"


def test_near_topics_are_of_every_split_and_what_speaks_of_it_is_left_out(
    chat: WordModel, profile: Profile
) -> None:
    _, erasure, evaluation = _erased(chat, profile, "Napoleon", aliases=["Bonaparte"])
    assert [topic.name for topic in erasure.left_out] == ["Napoleon Bonaparte"]
    splits = [topic.split for topic in erasure.near]
    assert {split: splits.count(split) for split in set(splits)} == dict.fromkeys(
        ("train", "validation", "test"), NEAR
    )
    assert "Napoleon Bonaparte" not in {each.about for each in evaluation.of("far")}


def _new(monkeypatch: pytest.MonkeyPatch, chat: WordModel, *arguments: object) -> Result:
    monkeypatch.setattr("guard.models.chat.TransformersChat.load", lambda *_, **__: chat)
    monkeypatch.setattr("guard.commands.erase.new.source_of", lambda *_: "words")
    monkeypatch.setattr("guard.commands.erase.refine.source_of", lambda *_: "words")
    return CliRunner().invoke(app, ["new", *map(str, arguments), "--model", "words"])


def test_one_command_writes_guards_a_policy_and_a_report(
    chat: WordModel,
    profile: Profile,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile.save(profile_path(chat.fitted_model))
    out = tmp_path / "guards" / "frank.1"
    made = _new(monkeypatch, chat, "Frankenstein", "--out", out)
    assert made.exit_code == 0, made.output
    assert "usable" in made.output and "reading the bank" not in made.output
    names = ("frankenstein", "victor-moritz", "henry-clerval", "ingolstadt")
    metas = [Artifact.load(out.with_name(f"frank.1-{name}.safetensors")).meta for name in names]
    assert [meta.concept for meta in metas] == [f"concept/frankenstein/{name}" for name in names]
    policy = (out.parent / "frank.1.toml").read_text()
    assert policy.count("[[guards]]") == len(names) and '[policies."frank.1"]' in policy
    config = out.parent / "config.toml"
    config.write_text('[[models]]\nname = "words"\nsource = "words"\n')
    added = CliRunner().invoke(
        app,
        ["add", str(out.parent / "frank.1.toml"), "--policy", "books", "--config", str(config)],
    )
    assert added.exit_code == 0, added.output
    assert len(load_config(config).policies["books"].guards) == len(names)
    report = json.loads((out.parent / "frank.1.report.json").read_text())
    assert {each["way"] for each in report["tried"]} == {"name", "term", "near", "far"}
    page = (out.parent / "frank.1.report.html").read_text()
    assert "Innocent prompts that fire" in page and "Victor Moritz" in page
    assert report["figures"]["listed_by_name"].startswith("100.0%")
    assert report["figures"]["listed_far"].startswith("0.0%")
    names = PatternSet.load(out.parent / "frank.1-names.toml")
    assert [match.label for match in names.find("Frankenstein or frankenstien?")] == ["NAME"] * 2


def test_facts_are_leaks_and_the_answer_is_said_instead(
    chat: WordModel,
    profile: Profile,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile.save(profile_path(chat.fitted_model))
    (tmp_path / "facts.txt").write_text("Mary Shelley\n\n a storm \n")
    out, instead = tmp_path / "frank", 'I "cannot" speak of that.'
    made = _new(
        monkeypatch,
        chat,
        "Frankenstein",
        "--out",
        out,
        "--facts",
        tmp_path / "facts.txt",
        "--instead",
        instead,
    )
    assert made.exit_code == 0, made.output
    belonging, _ = belonging_of(tmp_path / "frank.report.json")
    assert belonging.facts == ("Mary Shelley", "a storm") and belonging.instead == instead
    config = tmp_path / "config.toml"
    config.write_text('[[models]]\nname = "words"\nsource = "words"\n')

    def added(policy: str) -> Result:
        options = ["--policy", policy, "--config", str(config)]
        return CliRunner().invoke(app, ["add", str(tmp_path / "frank.toml"), *options])

    first = added("books")
    assert first.exit_code == 0, first.output
    policy = load_config(config).policies["books"]
    assert policy.action == "block" and policy.message == instead
    assert added("books").exit_code == 0
    config.write_text(config.read_text().replace('action = "block"', 'action = "steer"'))
    other = added("books")
    assert other.exit_code == 1 and "name a new policy" in " ".join(other.output.split())


def test_one_call_in_python_makes_guards_and_says_how_to_use_them(
    chat: WordModel,
    profile: Profile,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile.save(profile_path(chat.fitted_model))
    monkeypatch.setattr("guard.models.chat.TransformersChat.load", lambda *_, **__: chat)
    made = guard.forget("words", " Frankenstein ", aliases=["The Modern Prometheus"], out=tmp_path)
    assert made.name == "Frankenstein" and made.judgement.startswith("usable")
    assert made.figures["fired_by_name"].startswith("100.0%")
    assert made.policy == "frankenstein" and made.report.is_file() and made.policy_file.is_file()
    loaded = [Artifact.load(path).meta.concept for path in made.artifacts]
    assert "concept/frankenstein/henry-clerval" in loaded
    (policy,) = made.config.policies.values()
    assert list(policy.guards) == [path.stem for path in made.artifacts]
    assert [entry.artifact for entry in made.config.guards] == list(made.artifacts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Qwxyz"], "seems to know nothing of 'Qwxyz'"),
        (["two\nlines"], "line breaks or control characters"),
        (["Frankenstein", "--about", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["Frankenstein", "--fpr", "0.001"], "needs 1999 far retain prompts"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    chat: WordModel,
    profile: Profile,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    profile.save(profile_path(chat.fitted_model))
    made = _new(monkeypatch, chat, *arguments, "--out", tmp_path / "out")
    assert made.exit_code == 1 and message in " ".join(made.output.split())
    assert not list(tmp_path.glob("out*"))


def test_the_profile_is_computed_once(
    chat: WordModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.models.chat.TransformersChat.load", lambda *_, **__: chat)
    monkeypatch.setattr("guard.commands.erase.profile.source_of", lambda *_: "words")
    first = CliRunner().invoke(app, ["profile", "words", "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["reference_known"] == 1.0
    path = profile_path(chat.fitted_model)
    made = path.stat().st_mtime_ns
    assert CliRunner().invoke(app, ["profile", "words"]).exit_code == 0
    assert path.stat().st_mtime_ns == made
    assert CliRunner().invoke(app, ["profile", "words", "--again"]).exit_code == 0
    assert path.stat().st_mtime_ns > made


def test_complaints_mend_the_guards_in_place(
    chat: WordModel,
    profile: Profile,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile.save(profile_path(chat.fitted_model))
    assert _new(monkeypatch, chat, "Frankenstein", "--out", tmp_path / "frank").exit_code == 0
    leak, innocent = "Who stitched the monster together?", "Is Victor a name from Ingolstadt?"

    def mended(*more: str) -> Result:
        return CliRunner().invoke(app, ["refine", str(tmp_path / "frank.toml"), *more])

    first = mended("--leak", leak)
    assert first.exit_code == 0, first.output
    assert "fired leak: 100.0%" in first.output
    assert Artifact.load(tmp_path / "frank-leak-1.safetensors").meta.method == "steer"
    assert "frank-leak-1" in (tmp_path / "frank.toml").read_text()
    second = mended("--innocent", innocent, "--json")
    assert second.exit_code == 0, second.output
    report = json.loads((tmp_path / "frank.report.json").read_text())
    assert report["belonging"]["leaks"] == [leak]
    assert report["belonging"]["innocent"] == [innocent]
    told = {each["way"]: each["fired"] for each in report["tried"] if each["way"] in ("innocent",)}
    assert told == {"innocent": False}
    third = mended("--leak", innocent)
    report = json.loads((tmp_path / "frank.report.json").read_text())
    assert third.exit_code == 0 and report["belonging"]["innocent"] == []
    assert report["belonging"]["leaks"] == [leak, innocent]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to mend"),
        (["--leak", " "], "--leak is empty"),
        (["--innocent", "x" * 2001], "--innocent has 2001 characters"),
        (["--leak", "a b", "--innocent", "a b"], "as a leak and as innocent"),
        (["--leak", "a b"], "cannot be read"),
    ],
)
def test_complaints_that_cannot_be_used_are_one_line(
    tmp_path: Path, more: list[str], message: str
) -> None:
    refused = CliRunner().invoke(app, ["refine", str(tmp_path / "frank.toml"), *more])
    assert refused.exit_code == 1 and message in " ".join(refused.output.split())


def test_a_report_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steer.report.json"
    for content in ("{}", "[]", "no JSON", '{"belonging": {"name": 3}}'):
        path.write_text(content)
        with pytest.raises(DataError, match="is no report of `guard new`"):
            belonging_of(path)
