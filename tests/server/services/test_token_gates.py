"""The scores of each token: what a model of its own says of the same tokens, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.services.interface import FinishedText, TextDelta, TextRowRequest
from server.services.token_gates import TokenGate, TokenGates
from steering.engines.transformers.row_tokens import RowToken
from steering.prompt import Prompt
from tests.server.running_service import run
from tests.server.services.text_driver import answers, request
from tests.server.tiny_text_service import RunningText, TinyTextModel, steer_tensors

SENSED = 2
"""The hidden states behind decoder layer 1, where the guards sense."""


def gated(running: RunningText, *requests: TextRowRequest) -> list[tuple[Any, list[TokenGate]]]:
    """The tokens of answers, and the gates that were told beside them, in their order."""

    async def read(events: Any) -> tuple[Any, list[TokenGate]]:
        tokens, gates, sent = [], [], 0
        async for event in events:
            if isinstance(event, TextDelta):
                tokens += event.tokens
                sent += len(event.tokens)
                assert all(gate.position <= sent for gate in event.gates), "not sent yet"
                gates += event.gates
            elif isinstance(event, FinishedText):
                return tokens, gates
        raise AssertionError("no end")

    async def batch() -> list[tuple[Any, list[TokenGate]]]:
        return await asyncio.gather(*map(read, running.service.submit(requests)))

    found: list[tuple[Any, list[TokenGate]]] = run(batch)
    return found


def debug(running: RunningText, policy: str, text: str = "hello", **options: Any) -> TextRowRequest:
    return replace(request(running, policy, text, **options), debug=True)


def reference(model: TinyTextModel, prompt: tuple[int, ...], answer: list[int]) -> list[float]:
    """The score of every token but the first, from one forward of the bare model."""
    bare = AutoModelForCausalLM.from_pretrained(model.folder / "model").eval()
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer]])
        states = bare(ids, output_hidden_states=True).hidden_states[SENSED][0]
    scores: list[float] = (states @ torch.tensor(steer_tensors()["gates"][0])).tolist()
    return scores


@pytest.mark.parametrize("policy", ["steer-never", "steer-watchful", "observe-always"])
def test_scores_are_those_of_the_states_of_each_token(
    shared: RunningText, tiny_model: TinyTextModel, policy: str
) -> None:
    asked, other = debug(shared, policy, "tell me"), request(shared, policy, "another one")
    plain, _ = answers(shared, request(shared, policy, "tell me"), other)
    (tokens, gates), (_, none) = gated(shared, asked, other)
    assert tokens == plain.tokens, "who looks on changes nothing"
    assert none == [], "a neighbour that did not ask is told nothing"
    prompt, of_answer = asked.prompt.tokens, [token.token_id for token in tokens]
    expected = reference(tiny_model, prompt, of_answer)
    guard = policy.split("-")[1]
    of_prompt = [gate for gate in gates if gate.position == 0]
    assert [gate.text for gate in of_prompt][-3:] == ["m", "e", "<|assistant|>"]
    assert of_prompt[0].scores == {}, "no guard reads the first token"
    found = [gate.scores[guard] for gate in gates[1:]]
    positions = [gate.position for gate in gates if gate.position]
    # whether the last token is read is a matter of the policy: it may have to be cut off
    assert positions in ([*range(1, len(tokens))], [*range(1, len(tokens) + 1)])
    assert found == pytest.approx(expected[1 : len(found) + 1], abs=1e-3)


def test_tokens_that_a_guard_withholds_are_not_told(
    shared: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    for policy in ("block-late", "steer-late"):
        ((tokens, gates),) = gated(shared, debug(shared, policy, late.prompt))
        positions = [gate.position for gate in gates if gate.position]
        assert positions == sorted(set(positions)) and max(positions) <= len(tokens)
    ((tokens, gates),) = gated(shared, debug(shared, "block-late", late.prompt))
    assert len(tokens) == late.position - 1
    assert all(gate.scores["late"] <= late.recheck for gate in gates if gate.scores)


def test_a_token_in_place_of_a_withdrawn_one_has_its_own_score() -> None:
    gates = TokenGates(Prompt((1, 2)), None)

    def told(sent: int, score: float) -> list[tuple[int, float]]:
        gates.read(RowToken(7, gates=({"g": score},)))
        return [(gate.position, gate.scores["g"]) for gate in gates.take(sent)]

    gates.read(RowToken(7))
    assert told(1, 0.1) == [(1, 0.1)]
    assert told(1, 0.2) == []  # of the second token, which is not sent yet
    assert told(1, 0.9) == []  # of the third one: a guard fires
    gates.go_back(3)  # the first one is left, and read again
    assert told(2, 0.15) == [], "the first one was told, the second one is not read yet"
    assert told(2, 0.3) == [(2, 0.3)]


def test_a_prompt_that_is_read_in_parts_is_told_whole(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with tiny_model.serve(tmp_path, max_prefill_tokens=16) as running:
        asked = debug(running, "steer-never", "a long prompt of many letters, in parts")
        ((_, gates),) = gated(running, asked)
    of_prompt = [gate for gate in gates if gate.position == 0]
    assert len(of_prompt) == len(asked.prompt) > 32
    assert [bool(gate.scores) for gate in of_prompt] == [False] + [True] * (len(asked.prompt) - 1)
    expected = reference(tiny_model, asked.prompt.tokens, [])
    assert [g.scores["never"] for g in of_prompt[1:]] == pytest.approx(expected[1:], abs=1e-3)
