"""Suppression lists of names, on a model whose states are its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.commands.guards import POLICY, config_of
from guard.config.schema import ModelConfig
from guard.errors import DataError
from guard.fitting.erasure.profile import Profile, profile_path
from guard.fitting.erasure.profiling import compute_profile
from guard.fitting.suppression.fit import ListRates
from guard.fitting.suppression.lists import Entry, SuppressionLists, entries_of, shrunk, slots_of
from guard.plans.language import LanguagePlans, ServedModel
from steering.hidden.rows import Reading
from tests.guard.fitting.erasure.words import DEPTH, WIDTH, WordModel

SILENT: Any = lambda what, total: lambda count=1: None  # noqa: E731
NAMES = ["Zelda Quarrington", "Ottokar Feldspar", "Ximena Brightwater", "Bartholomew Ng"]


@pytest.fixture(scope="module")
def chat() -> WordModel:
    return WordModel({})


@pytest.fixture(scope="module")
def profile(chat: WordModel) -> Profile:
    return compute_profile(chat, SILENT)  # type: ignore[arg-type]


@pytest.fixture
def lists(
    chat: WordModel, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SuppressionLists:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    profile.save(profile_path(chat.fitted_model))
    return SuppressionLists(chat, SILENT)  # type: ignore[arg-type]


def _entries(names: list[str]) -> list[Entry]:
    return [Entry.of(name) for name in names]


def _plans(artifact: Artifact, path: Path) -> LanguagePlans:
    artifact.save(path)
    served = ServedModel(artifact.meta.model.fingerprint, DEPTH, WIDTH, "cpu")
    return LanguagePlans(config_of([path], ModelConfig(name="m", source="m")), served, name="m")


def _readings(chat: WordModel, plans: LanguagePlans, prompts: list[str]) -> list[Reading]:
    answers = chat.answer(prompts, bank=plans.bank, guards=plans[POLICY].rows())
    return [answer.readings["people"] for answer in answers]


def test_unseen_prompts_about_names_fire_and_others_do_not(
    chat: WordModel, lists: SuppressionLists, tmp_path: Path
) -> None:
    artifact = lists.made(_entries(NAMES), "names/people", ListRates())
    plans = _plans(artifact, tmp_path / "people.safetensors")
    readings = _readings(chat, plans, [f"Where did {name} go to school?" for name in NAMES])
    assert all(reading.fired and reading.valid for reading in readings)
    plan = plans[POLICY]
    for name, reading in zip(NAMES, readings, strict=True):
        verdict = plan.verdict({"people": reading}, request_id="r", model="m", elapsed_ms=1.0)
        (entry,) = verdict.guards
        assert entry.concept == f"names/people/{name.lower().replace(' ', '-')}"
        assert entry.guard == "people" and entry.action == "steer"
    others = ["Zelda Feldspar", "Ottokar Brightwater", "Jane Smith", "Zelda Smith"]
    quiet = _readings(chat, plans, [f"Where did {name} go to school?" for name in others])
    assert not any(reading.fired for reading in quiet)


def test_a_list_grows_and_shrinks_without_touching_the_others(
    lists: SuppressionLists,
) -> None:
    first = lists.made(_entries(NAMES[:3]), "names/people", ListRates())
    more = lists.grown(first, _entries(NAMES[3:]))
    assert entries_of(more) == [entry.id for entry in _entries(NAMES)]
    assert (more.tensors["gates"][:3] == first.tensors["gates"]).all()
    assert more.meta.settings["threshold"] == first.meta.settings["threshold"]
    less = shrunk(more, [entries_of(more)[1]])
    # the numbers of the others are those of before
    assert slots_of(less) == [entries_of(more)[0], "", *entries_of(more)[2:]]
    assert len(entries_of(less)) == 3 and not less.tensors["gates"][1].any()
    assert (less.tensors["gates"][2:] == more.tensors["gates"][2:]).all()
    again = lists.grown(less, _entries([NAMES[1]]))
    assert entries_of(again)[-1] == entries_of(more)[1]
    doubled = lists.grown(first, _entries([NAMES[3], "Ada Fenn", "Bo Rask"]))
    assert doubled.meta.calibration["names"] == 6
    for setting in ("threshold", "recheck"):
        assert doubled.meta.settings[setting] >= first.meta.settings[setting]  # type: ignore[operator]
    # whoever is added last does not speak for all
    assert doubled.meta.settings["radius"] == first.meta.settings["radius"]
    assert doubled.meta.calibration["far_fired"] <= 0.01  # type: ignore[operator]
    with pytest.raises(DataError, match="no entry 'nobody'"):
        shrunk(more, ["nobody"])
    with pytest.raises(DataError, match="no entry would be left"):
        shrunk(first, entries_of(first))


def test_a_list_is_tried_on_the_names_that_it_got_last(lists: SuppressionLists) -> None:
    first = lists.made(_entries(NAMES[:3]), "names/people", ListRates())
    added = NAMES[3]
    figures = lists.figures(lists.grown(first, _entries([added])), [added])
    assert "(8/8;" in figures["fired_by_name"]
    assert figures["fired_sharing"].startswith("0.0% (0/20;")
    # the list that does not have the name yet
    assert "(0/8;" in lists.figures(first, [added])["fired_by_name"]


def test_a_name_that_was_taken_off_does_not_fire(
    chat: WordModel, lists: SuppressionLists, tmp_path: Path
) -> None:
    artifact = shrunk(
        lists.made(_entries(NAMES), "names/people", ListRates()), [_entries(NAMES)[0].id]
    )
    plans = _plans(artifact, tmp_path / "people.safetensors")
    readings = _readings(chat, plans, [f"Where did {name} go to school?" for name in NAMES])
    assert [reading.fired for reading in readings] == [False, True, True, True]


def test_an_id_is_a_word() -> None:
    assert Entry.of("Véra Lindgren").id == "vera-lindgren"
    assert Entry.of("Anyone", "case-7.b").id == "case-7.b"
    with pytest.raises(DataError, match="is no word"):
        Entry.of("Anyone", "../case")


def _run(monkeypatch: pytest.MonkeyPatch, chat: WordModel, *arguments: object) -> Result:
    monkeypatch.setattr("guard.models.chat.TransformersChat.load", lambda *_, **__: chat)
    monkeypatch.setattr("guard.commands.erase.suppress.source_of", lambda *_: "words")
    return CliRunner().invoke(app, ["suppress", *map(str, arguments)])


def test_the_command_makes_changes_and_shows_a_list(
    chat: WordModel, lists: SuppressionLists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, names = tmp_path / "people.safetensors", tmp_path / "names.csv"
    names.write_text("name,id\nZelda Quarrington,case-1\nOttokar Feldspar,\n")
    made = _run(monkeypatch, chat, path, "--from", names, "--model", "words", "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert facts["names"] == 2 and facts["added"] == ["case-1", "ottokar-feldspar"]
    assert facts["named_fired"] == 1.0 and facts["far_fired"] <= 0.01
    added = _run(monkeypatch, chat, path, "Ximena Brightwater", "--lower")
    assert added.exit_code == 0, added.output
    known = entries_of(Artifact.load(path))
    assert known == ["case-1", "ottokar-feldspar", *["ximena-brightwater"] * 2]
    further = _run(monkeypatch, chat, path, "Z. Quarrington", "--id", "case-1", "--alias")
    assert further.exit_code == 0 and entries_of(Artifact.load(path))[-1] == "case-1"
    before = path.read_bytes()
    again = _run(monkeypatch, chat, path, "Ximena Brightwater")
    assert again.exit_code == 0 and "on the list already: ximena-brightwater" in again.output
    rates = _run(monkeypatch, chat, path, "Bo Rask", "--strangers-fpr", "0.1")
    assert rates.exit_code == 1 and "keeps the rates" in " ".join(rates.output.split())
    assert path.read_bytes() == before
    assert _run(monkeypatch, chat, path, "Ximena Brightwater", "--remove").exit_code == 0
    assert entries_of(Artifact.load(path)) == ["case-1", "ottokar-feldspar", "case-1"]
    nobody = _run(monkeypatch, chat, path, "Z. Q.", "--id", "case-9", "--alias")
    assert nobody.exit_code == 1 and "has no entry 'case-9'" in " ".join(nobody.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["people.safetensors"], "no name is given"),
        (["people.json", "Ada Fenn", "--model", "words"], "name ends in .safetensors"),
        (["people.safetensors", "Ada Fenn"], "name its model with --model"),
        (["people.safetensors", "Ada Fenn", "--remove"], "there is no list"),
        (["people.safetensors", "a\nb", "--model", "words"], "line breaks"),
        (["people.safetensors", "A B", "--model", "words", "--fpr", "0.002"], "--fpr: the rate"),
        (["people.safetensors", "--from", "nowhere.csv"], "cannot be read"),
        (["people.safetensors", "--from", "bad.csv"], "line 1: has no column `name`"),
        (["people.safetensors", "--from", "empty.csv"], "line 3: the concept has no name"),
        (["people.safetensors", "--from", "binary.csv"], "is no CSV file"),
    ],
)
def test_what_cannot_be_listed_is_one_line(
    chat: WordModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("person\nAda\n")
    Path("empty.csv").write_text("name,id\nAda Fenn,1\n ,2\n")
    Path("binary.csv").write_bytes(b"name\n\xff\xfe\n")
    made = _run(monkeypatch, chat, *arguments)
    assert made.exit_code == 1 and message in " ".join(made.output.split()), made.output
    assert not Path("people.safetensors").exists()


def test_what_names_share_is_computed_once_and_anew_for_another_bank(
    chat: WordModel, profile: Profile, lists: SuppressionLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = profile_path(chat.fitted_model).parent.glob("*.names-*.safetensors")
    made = path.stat().st_mtime_ns
    SuppressionLists(chat, SILENT)  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns == made
    monkeypatch.setattr("guard.fitting.suppression.strangers.digest", lambda: "another bank")
    SuppressionLists(chat, SILENT)  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns > made
