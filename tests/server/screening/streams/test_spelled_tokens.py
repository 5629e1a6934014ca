"""Tokens that spell a rewritten text, and everything beside them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from server.screening.streams.event_queue import without_tokens

TOKEN = {"token": "secret", "logprob": -0.1, "bytes": [115], "top_logprobs": []}


@pytest.mark.parametrize(
    "value",
    [
        {"logprobs": []},
        {"logprobs": None},
        {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [], "refusal": None}}]},
        {"choices": [{"logprobs": {"content": [], "refusal": []}}]},
        {"choices": [{"text": "x", "logprobs": {"tokens": [], "text_offset": []}}]},
        {"token_ids": [], "prompt_token_ids": None, "top_logprobs": 0},
        {"content": [{"type": "output_text", "text": "x", "logprobs": []}]},
    ],
)
def test_what_spells_nothing_stays(value: Any) -> None:
    before = copy.deepcopy(value)
    assert not without_tokens(value)
    assert value == before


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"logprobs": [TOKEN]}, {"logprobs": []}),
        (
            {"choices": [{"index": 0, "logprobs": {"content": [TOKEN], "refusal": None}}]},
            {"choices": [{"index": 0, "logprobs": {"content": [], "refusal": None}}]},
        ),
        (
            {"logprobs": {"tokens": ["secret"], "token_logprobs": [-1], "text_offset": [0]}},
            {"logprobs": {"tokens": [], "token_logprobs": [], "text_offset": []}},
        ),
        ({"logprobs": {"secret": -0.1}}, {"logprobs": {}}),
        ({"logprobs": "secret"}, {"logprobs": None}),
        ({"token_ids": [7], "usage": {"x": [1]}}, {"token_ids": [], "usage": {"x": [1]}}),
    ],
)
def test_tokens_go_and_the_rest_stays(value: Any, left: Any) -> None:
    assert without_tokens(value)
    assert value == left
