"""`[[patterns]]` that look for entities, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifiers.text.entities import sources
from guard.config.schema import load_config
from guard.errors import ConfigError

GOOD = """
[[patterns]]
name = "people"
source = "entities"
model = "./names"
entities = ["PERSON", "LOCATION"]
language = "en"
[policies.p]
guards = ["people"]
action = "redact"
"""


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: name)


def _faults(folder: Path, text: str) -> list[str]:
    (folder / "names").mkdir(exist_ok=True)
    (folder / "names" / "config.cfg").write_text("")
    (folder / "config.toml").write_text(text)
    try:
        load_config(folder / "config.toml")
    except ConfigError as error:
        return [problem.partition(": ")[2] for problem in error.problems]
    return []


def test_a_folder_is_relative_to_the_configuration(tmp_path: Path) -> None:
    assert _faults(tmp_path, GOOD) == []
    (entry,) = load_config(tmp_path / "config.toml").patterns
    assert entry.model == str(tmp_path / "names")
    assert entry.entities == ("PERSON", "LOCATION")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('model = "./names"\n', "", "patterns[0].model: is missing: name a pipeline of spaCy"),
        ('"./names"', '"./none"', "patterns[0].model: no model is in "),
        ('"./names"', '"xx_no_such"', "patterns[0].model: no package xx_no_such is installed: ins"),
        ('entities = ["PERSON", "LOCATION"]', "", "patterns[0].entities: is missing: say what"),
        ('["PERSON", "LOCATION"]', "[]", "patterns[0].entities: is missing: say what"),
        ('"PERSON"', '"person"', "patterns[0].entities[0]: should be a name in capitals"),
        ('"en"', '"English"', "patterns[0].language: should be a code of two or three"),
        ('source = "entities"', 'source = "secrets"', 'patterns[0].model: is for source = "ent'),
        ('action = "redact"', 'action = "route"', "policies.p.action: needs a destination"),
    ],
)
def test_faults_of_entities(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in GOOD
    faults = _faults(tmp_path, GOOD.replace(old, new))
    assert any(each.startswith(fault) for each in faults), faults


def test_an_absent_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    assert _faults(tmp_path, GOOD) == [
        "patterns[0].model: needs presidio-analyzer: pip install 'inference-guard[ner]'"
    ]
