"""Sampling of text rows: seeds, stop strings, end tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from guard.config.schema import load_config
from server.services.interface import SamplingOptions, TextRowRequest
from tests.server.services.text_driver import answers, request
from tests.server.tiny_text_service import RunningText, TinyTextModel


def test_a_seed_gives_the_same_text_in_any_batch(shared: RunningText) -> None:
    def seeded() -> TextRowRequest:
        return request(shared, temperature=1.0, seed=7)

    alone = answers(shared, seeded())[0].text
    beside = answers(
        shared,
        request(shared, text="other", temperature=1.0),
        seeded(),
        request(shared, "flag-never"),
    )
    assert beside[1].text == alone
    assert answers(shared, request(shared, temperature=1.0, seed=8))[0].text != alone
    unseeded = answers(shared, *[request(shared, temperature=1.5)] * 4)
    assert len({answer.text for answer in unseeded}) > 1


def test_a_stop_string_ends_the_row_before_it(shared: RunningText) -> None:
    (whole,) = answers(shared, request(shared))
    stop = whole.text[5:8]
    at = whole.text.index(stop)
    cut, delayed = answers(
        shared, request(shared, stop=(stop,)), request(shared, "block-watchful", stop=(stop,))
    )
    assert cut.text == delayed.text == whole.text[:at]
    assert cut.finished.reason == delayed.finished.reason == "stop"
    assert cut.finished.completion_tokens == delayed.finished.completion_tokens < 16


def test_the_start_of_a_stop_string_at_the_end_is_sent(shared: RunningText) -> None:
    (whole,) = answers(shared, request(shared))
    cut, delayed = (
        request(shared, policy, stop=(whole.text[-1] + "\n\n",))
        for policy in ("none", "block-watchful")
    )
    for answer in answers(shared, cut, delayed):
        assert answer.text == whole.text
        assert answer.finished.reason == "length"


def test_an_end_token_ends_the_row_and_is_not_sent(
    shared: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = answers(shared, request(shared))
    end = whole.tokens[6].token_id
    first = next(i for i, token in enumerate(whole.tokens) if token.token_id == end)
    monkeypatch.setattr(shared.service, "_end_tokens", frozenset({end}))
    for answer in answers(shared, request(shared), request(shared, "block-watchful")):
        assert [token.token_id for token in answer.tokens] == [
            token.token_id for token in whole.tokens[:first]
        ]
        assert answer.finished.reason == "stop"
        assert answer.finished.completion_tokens == first + 1


def test_end_tokens_outside_of_the_vocabulary_end_nothing(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    """Some models' generation configurations name tokens that their embeddings do not have."""
    source = shutil.copytree(tiny_model.folder / "model", tmp_path / "model")
    ends = source / "generation_config.json"
    ends.write_text(json.dumps({**json.loads(ends.read_text()), "eos_token_id": [2, 10**6]}))
    path = tiny_model.write_config(tiny_model.copy(tmp_path))
    path.write_text(path.read_text().replace(str(tiny_model.folder / "model"), str(source)))
    with tiny_model.serve(tmp_path, load_config(path)) as running:
        shortest = SamplingOptions(min_tokens=3)
        bare, longer = answers(running, request(running), request(running, options=shortest))
    assert longer.content == bare.content
    assert (longer.finished.reason, bare.finished.reason) == ("length", "length")
