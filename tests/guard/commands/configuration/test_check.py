from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steering.methods import METHODS
from tests.guard.commands.running import run
from tests.guard.config.test_schema import BAD
from tests.guard.conftest import GOOD, MakeArtifact, describe_model

pytestmark = pytest.mark.usefixtures("plain_terminal")


def test_check_prints_what_a_configuration_means(good: Path) -> None:
    result = run("check", good)
    assert result.exit_code == 0, result.output
    for words in (
        "Policy strict: steer, on error open, for acme (sha256:aaaaaaaa)",
        "Policy none: no guards, for acme",
        "character/harry-potter",
        "0.7 (config)",
        "1 (artifact)",
        "0.25 (artifact)",
        "tiny (ffffffffffff)",
        "is valid.",
    ):
        assert words in result.stdout, words


def test_check_prints_the_same_as_json(good: Path) -> None:
    result = run("check", good, "--json")
    meaning = json.loads(result.stdout)
    assert meaning["ok"] is True
    (guard,) = meaning["policies"]["strict"]["guards"]
    assert guard["threshold"] == {"value": 0.7, "from": "config"}
    assert guard["strength"] == {"value": 1.0, "from": "artifact"}
    assert guard["fits_model"]["fingerprint"] == "f" * 64
    assert meaning["policies"]["none"]["asked_for_by"] == ["acme (sha256:aaaaaaaa)"]
    assert meaning["keys"][0]["policies"] == ["none", "strict"]
    assert "a" * 64 not in result.stdout


def test_check_says_that_a_server_with_a_database_has_its_keys_there(good: Path) -> None:
    text = good.read_text()
    good.write_text(text + '\n[tenants]\ndatabase = "tenants.sqlite"\n')
    meaning = json.loads(run("check", good, "--json").stdout)
    assert meaning["tenants"] is True
    asking = meaning["policies"]["none"]["asked_for_by"]
    assert asking == ["acme (sha256:aaaaaaaa)", "keys of the database"]
    assert "keys of the database" in run("check", good).stdout
    good.write_text(text[: text.index("[[keys]]")] + '[tenants]\ndatabase = "tenants.sqlite"\n')
    shown = run("check", good).stdout
    assert "for keys of the database" in shown and "anyone" not in shown


def test_check_shows_a_guard_in_shadow(good: Path) -> None:
    assert "in shadow" not in run("check", good).stdout
    text = good.read_text().replace("threshold = 0.7", "threshold = 0.7\nshadow = true")
    good.write_text(text)
    assert "hp (in shadow: only observes)" in run("check", good).stdout
    (guard,) = json.loads(run("check", good, "--json").stdout)["policies"]["strict"]["guards"]
    assert guard["shadow"] is True


def test_check_shows_a_policys_own_threshold_and_its_shadow(good: Path) -> None:
    table = "[policies.strict]\n"
    shadow = (
        '[policies.strict.shadow]\nguards = ["hp"]\naction = "flag"\nthresholds = { hp = 0.2 }\n'
    )
    good.write_text(GOOD.replace(table, f"{table}thresholds = {{ hp = 0.9 }}\n") + shadow, "utf-8")
    output = " ".join(run("check", good).stdout.split())
    assert "in shadow: flag by hp" in output and "0.9 (policy)" in output
    strict = json.loads(run("check", good, "--json").stdout)["policies"]["strict"]
    assert strict["guards"][0]["threshold"] == {"value": 0.9, "from": "policy"}
    assert strict["shadow"]["guards"][0]["threshold"] == {"value": 0.2, "from": "policy"}


def test_check_says_what_becomes_of_answers(good: Path) -> None:
    plain = run("check", good).stdout
    assert "guards decide on the whole conversation" in plain and "message" not in plain
    assert "whole and steered answers go back" in " ".join(plain.split())
    table = "[policies.strict]\n"
    assert table in GOOD
    keys = 'actions = { hp = "say" }\nscope = "turn"\nrewind = true\nmessage = "Not here."\n'
    good.write_text(GOOD.replace(table, table + keys), "utf-8")
    output = " ".join(run("check", good).stdout.split())
    for words in (
        "guards decide on the user's last turn (hp: say)",
        'message "Not here."',
    ):
        assert words in output, words
    assert "go back" not in output, "a message ends them"
    strict = json.loads(run("check", good, "--json").stdout)["policies"]["strict"]
    assert strict["message"] == "Not here." and strict["actions"] == {"hp": "say"}
    for rewind, words in (("true", ", answers go back"), ("false", ", answers never go back")):
        good.write_text(GOOD.replace(table, f"{table}rewind = {rewind}\n"), "utf-8")
        assert words in " ".join(run("check", good).stdout.split())


IMAGES = """
[server]
default_policy = "hp"

[[models]]
name = "words"
source = "./words"

[[models]]
name = "emoji"
source = "./emoji"
engine = "diffusers"
steps = 25

[[guards]]
name = "hp"
artifact = "hp.safetensors"

[[guards]]
name = "knife"
artifact = "knife.safetensors"

[policies.hp]
guards = ["hp"]

[policies.knife]
guards = ["hp", "knife"]
action = "refine"
fallback = "replace"
replacement = "a banana"
"""


@pytest.fixture
def images(tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy = replace(METHODS["nearest"], name="toy", stack=lambda guards, device: guards)
    monkeypatch.setitem(METHODS, "toy", toy)
    describe_model(tmp_path / "words")
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "model_index.json").write_text("{}", "utf-8")
    make_artifact().save(tmp_path / "hp.safetensors")
    settings = {"threshold": 0.5, "strength": 1.0, "max_steps": 12, "rate": 0.123456}
    make_artifact(seams=["embedding"], method="toy", settings=settings).save(
        tmp_path / "knife.safetensors"
    )
    (tmp_path / "config.toml").write_text(IMAGES, "utf-8")
    return tmp_path / "config.toml"


def test_check_shows_image_models_fallbacks_and_settings_of_methods(images: Path) -> None:
    output = " ".join(run("check", images).stdout.split())
    for words in (
        'Policy knife: refine, on error closed, for anyone, fallback replace by "a banana"',
        "max_steps 12, rate 0.1235",
        "steps: 25",
        "hp (server): has no guard",
    ):
        assert words in output, words
    assert "fallback" not in output.partition("Policy hp:")[2].partition("Policy knife")[0]


def test_check_shows_which_policies_are_for_which_model(images: Path) -> None:
    meaning = json.loads(run("check", images, "--json").stdout)
    words, emoji = meaning["models"]
    assert (words["policies"], emoji["policies"]) == (["none", "hp", "knife"], ["none", "knife"])
    assert words["default_policy"] == {"value": "hp", "from": "server", "fits": True}
    assert emoji["default_policy"] == {"value": "hp", "from": "server", "fits": False}
    assert meaning["policies"]["knife"]["fallback"] == "replace"
    assert [guard["kind"] for guard in meaning["policies"]["knife"]["guards"]] == [
        "language",
        "images",
    ]
    assert meaning["guards"][1]["settings"] == {"max_steps": 12, "rate": 0.123456}


@pytest.mark.parametrize("may", [True, False])
def test_check_shows_which_keys_allow_embeddings(good: Path, may: bool) -> None:
    good.write_text(GOOD + f"embeddings = {str(may).lower()}\n", "utf-8")
    meaning = json.loads(run("check", good, "--json").stdout)
    assert meaning["keys"][0]["embeddings"] is may
    keys = run("check", good).stdout.partition("Keys")[2]
    assert "embeddings" in keys and ("yes" in keys) is may


def test_check_shows_a_policy_that_no_key_may_use(good: Path) -> None:
    good.write_text(GOOD.replace('policies = ["none"]', ""), "utf-8")
    assert "Policy none: no guards, for no key" in run("check", good).stdout


def test_check_without_keys_shows_anyone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert "Policy none: no guards, for anyone" in run("check", tmp_path / "config.toml").stdout


def test_check_prints_one_line_for_each_problem_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(BAD, "utf-8")
    result = run("check", path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 18
    assert all(line.startswith("error: line ") for line in lines)
    result = run("check", path, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 18


@pytest.mark.parametrize(("sense", "noted"), [([1], False), ([1, 3], True)])
def test_check_notes_a_guard_that_senses_behind_another_that_acts(
    tmp_path: Path, make_artifact: MakeArtifact, sense: Any, noted: bool
) -> None:
    fitted = {"threshold": 0.5, "strength": 1.0, "schedule": [1.0], "pool": 1, "rest": 1}
    width = np.ones((1, 8), "f4")
    for name, layers in (("late", (sense, [3])), ("early", ([0], [2]))):
        settings = fitted | {"sense_layers": layers[0], "act_layers": layers[1]}
        tensors = {"gates": np.ones((len(layers[0]), 8), "f4"), "directions": width}
        make_artifact(tensors, settings=settings).save(tmp_path / f"{name}.safetensors")
    path = tmp_path / "config.toml"
    guards = "".join(
        f'[[guards]]\nname = "{name}"\nartifact = "{name}.safetensors"\n'
        for name in ("late", "early")
    )
    path.write_text(guards + '[policies.p]\nguards = ["late", "early"]\naction = "steer"\n')
    notes = json.loads(run("check", path, "--json").stdout)["policies"]["p"]["notes"]
    assert [note.startswith("late senses up to layer 3") for note in notes] == [True] * noted
    assert ("late senses" in run("check", path).stdout) == noted


def test_check_says_what_screens_read(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    lists = '[[patterns]]\nname = "secrets"\nsource = "secrets"\n\n[policies.p]\n'
    lists += 'guards = ["secrets"]\naction = "block"\n'
    config.write_text(lists)
    assert "reads what each screen is for (secrets: block)" in run("check", config).stdout
    config.write_text(lists + '[policies.p.screen]\nlook = ["user"]\n')
    assert "reads user (secrets: block)" in run("check", config).stdout
