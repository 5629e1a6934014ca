"""Each mode of each runner is compared with eager V1; an engine that does not run is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.parts import PARTS, drafts, same_requests
from tests.gpu.report import Figure
from tests.gpu.settings import Settings, Skipped

Asked = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("cuda", True, 3, None, "none", "none", "none", str(tmp_path))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The runner and the settings of each engine. One with full graphs drops directions, and V2
    refuses pieces."""
    found: Asked = []

    def play(
        folder: Path, requests: Sequence[Mapping[str, Any]], runner: str, engine: Mapping[str, Any]
    ) -> same_requests.Played:
        found.append((runner, dict(engine)))
        mode = engine.get("compilation_config", {}).get("cudagraph_mode")
        if (runner, mode) == ("v2", "PIECEWISE"):
            return None, "INFO starts\nValueError: guards do not go together with V2 yet\n"
        wrong = mode == "FULL_AND_PIECEWISE"
        answers = [_answer(request, i, wrong) for i, request in enumerate(requests)]
        return {"phases": [answers], "preempted": 12, "accepted": 7}, ""

    monkeypatch.setattr(same_requests, "play", play)
    monkeypatch.setattr(drafts, "play", play)
    for module in (same_requests, drafts):
        monkeypatch.setattr(module, "require_packages", lambda *names: None)
        monkeypatch.setattr(module, "save", lambda folder: None)
    return found


def _answer(request: Mapping[str, Any], number: int, wrong: bool) -> dict[str, Any]:
    guarded = request["policy"] not in (None, "none")
    guard = {"guard": "firm", "score": 2.0, "fired": True, "action": "steer", "position": 0}
    return {
        "tokens": [[number, int(wrong and guarded)]],
        "finish": "length",
        "cached": 32,
        "guard": {"outcome": "steered", "guards": [guard] if guarded else []},
    }


def _figures(settings: Settings, part: str) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    PARTS[part].run(settings, lambda figure: found.update({figure.name: figure}))
    return found


def test_every_mode_is_compared_and_a_dropped_direction_is_found(
    settings: Settings, asked: Asked
) -> None:
    found = _figures(settings, "runner-v1")
    assert asked[0] == ("v1", same_requests.CROWDED)
    modes = [engine["compilation_config"]["cudagraph_mode"] for _, engine in asked[1:]]
    assert sorted(modes) == sorted(same_requests.MODES)
    assert all(runner == "v1" and not engine["enforce_eager"] for runner, engine in asked[1:])
    assert found["eager V1: preemptions"].value == 12
    assert found["eager V1: tokens from cached prefixes"].value == 32 * 12
    right = found["v1 PIECEWISE: guarded requests with other tokens"]
    wrong = found["v1 FULL_AND_PIECEWISE: guarded requests with other tokens"]
    assert right.value == 0 and right.passed
    assert wrong.value > 0 and wrong.passed is False
    assert found["v1 FULL_AND_PIECEWISE: unguarded requests with other tokens"].value == 0


def test_an_engine_that_is_refused_leaves_the_others(settings: Settings, asked: Asked) -> None:
    found = _figures(settings, "runner-v2")
    # the reference is V1, and V2 runs eager too
    assert asked[0][0] == "v1" and {runner for runner, _ in asked[1:]} == {"v2"}
    assert found["v2 eager: engine runs"].passed
    refused = found["v2 PIECEWISE: engine runs"]
    assert refused.passed is False
    assert refused.note == "ValueError: guards do not go together with V2 yet"
    assert found["v2 FULL_DECODE_ONLY: guarded requests with other tokens"].passed


def test_drafts_are_compared_with_none(settings: Settings, asked: Asked) -> None:
    found = _figures(settings, "drafts")
    assert asked[0] == ("v1", {})
    assert all(engine["speculative_config"]["method"] == "ngram" for _, engine in asked[1:])
    assert {runner for runner, _ in asked[1:]} == {"v1", "v2"}
    assert found["v1 eager with drafts: accepted drafts"].value == 7
    assert found["v2 PIECEWISE with drafts: engine runs"].passed is False


def test_v2_needs_a_gpu(settings: Settings, asked: Asked) -> None:
    with pytest.raises(Skipped, match="needs a GPU"):
        PARTS["runner-v2"].run(replace(settings, device="cpu"), lambda figure: None)


def test_a_reference_that_does_not_run_ends_the_part(
    settings: Settings, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_requests, "play", lambda *args: (None, "Error: no memory"))
    with pytest.raises(RuntimeError, match="eager V1 has not run: Error: no memory"):
        _figures(settings, "runner-v1")
