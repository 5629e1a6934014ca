"""The judgement names what a caller can give, as it is called where the caller asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guard.fitting.erasure.evaluation import Evaluation, Tried, Way
from guard.fitting.erasure.report import COMMAND, HTTP, PYTHON, Parameters, judgement


def _tried(way: Way, fired: int, total: int) -> list[Tried]:
    return [Tried(way, "it", f"prompt {i}", i < fired) for i in range(total)]


def _judgement(parameters: Parameters, *, name: int, far: int) -> str:
    tried = [*_tried("name", name, 10), *_tried("far", far, 100)]
    erasure: Any = SimpleNamespace(belonging=SimpleNamespace(terms=()))
    return judgement(erasure, Evaluation(tuple(tried)), parameters)


@pytest.mark.parametrize(
    ("parameters", "draft", "unusable"),
    [
        (COMMAND, "with --alias, documents with --about, or ask for a higher --near-fpr", "--fpr"),
        (PYTHON, "with `aliases`, documents with `documents`, or ask for a higher", "`fpr`"),
        (HTTP, "with 'aliases', documents with 'documents'", "narrower concept"),
    ],
)
def test_a_judgement_names_the_parameters_of_its_caller(
    parameters: Parameters, draft: str, unusable: str
) -> None:
    assert draft in _judgement(parameters, name=5, far=0)
    assert _judgement(parameters, name=10, far=5).endswith(unusable)
    plain = _judgement(parameters, name=10, far=0)
    assert plain.startswith(f"usable where it is named; give documents with {parameters.documents}")


def test_a_judgement_names_an_innocent_prompt_in_which_the_list_finds_a_name() -> None:
    tried = [*_tried("name", 10, 10), *_tried("far", 0, 99)]
    erasure: Any = SimpleNamespace(belonging=SimpleNamespace(terms=("Geneva",)))
    assert judgement(erasure, Evaluation(tuple(tried))) == "usable"
    tried.append(Tried("far", "it", "Who is Frankenstine?", False, listed=True))
    line = judgement(erasure, Evaluation(tuple(tried)))
    assert (
        line == "usable; its list of names finds one in 'Who is Frankenstine?': take it out there"
    )


def test_over_http_no_option_of_the_command_is_named() -> None:
    for name, far in ((5, 0), (10, 5), (10, 0)):
        assert "--" not in _judgement(HTTP, name=name, far=far)
