"""Answers of a given form from a running batch: valid under every policy, or not there at all."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from guard.errors import ContentBlocked, RequestError, TooManyRequests
from server.services.constraints import QUEUED
from server.services.interface import SamplingOptions, TextRowRequest
from server.services.tools.hermes import HERMES
from server.services.tools.offered import OfferedTools
from steering.constraint import Constraint
from tests.server.running_service import run
from tests.server.services.text_driver import Answer, answers, read, request
from tests.server.tiny_text_service import RunningText, TinyTextModel
from tests.steering.byte_tokenizer import SPECIALS, byte_tokenizer

END = SPECIALS.index("</s>")
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["tale", "song", "joke"]},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["kind", "words"],
    "additionalProperties": False,
}
FORM = Constraint.json_schema(SCHEMA, param="response_format")


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> TinyTextModel:
    """A model with a tokenizer that grammars can be compiled for."""
    return TinyTextModel(tmp_path_factory.mktemp("bytes"), byte_tokenizer())


@pytest.fixture(scope="module")
def bytewise(
    tiny_bytes: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningText]:
    with tiny_bytes.serve(tmp_path_factory.mktemp("served"), max_batch=8) as running:
        yield running


def prepared(running: RunningText, *requests: TextRowRequest) -> list[Answer]:
    """The answers of requests in one batch, in the way of an endpoint."""

    async def ask() -> list[Answer]:
        await running.service.prepare(requests)
        return await asyncio.gather(*map(read, running.service.submit(requests)))

    return run(ask)


def formed(
    running: RunningText, policy: str = "none", text: str = "a tale", **options: Any
) -> TextRowRequest:
    settings = {"constraint": FORM, "max_tokens": 120, "temperature": 1.0, "seed": 1}
    return request(running, policy, text, **(settings | options))


def test_every_answer_is_valid_whatever_its_guards_do(bytewise: RunningText) -> None:
    policies = ["none", "steer-always", "steer-late", "flag-always", "block-watchful", "open-late"]
    rows = [formed(bytewise, policy, seed=i) for i, policy in enumerate(policies)]
    for policy, answer in zip(policies, prepared(bytewise, *rows), strict=True):
        assert answer.finished.reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        steered = policy in ("steer-always", "open-late")
        assert (answer.finished.verdict.outcome == "steered") >= steered, policy


def test_a_row_beside_formed_ones_answers_as_alone(bytewise: RunningText) -> None:
    (alone,) = answers(bytewise, request(bytewise))
    beside = prepared(bytewise, formed(bytewise), request(bytewise), formed(bytewise, "steer-late"))
    assert beside[1].text == alone.text


def test_a_guard_that_cuts_leaves_no_part_of_a_form(
    tiny_bytes: TinyTextModel, bytewise: RunningText
) -> None:
    """The guard fires in mid-answer: without a form the text before is sent, with one it is not."""
    late = tiny_bytes.late.prompt
    plain, *formed_ones = prepared(
        bytewise,
        request(bytewise, "block-late", late),
        *(formed(bytewise, "block-late", f"{letter} tale", seed=7) for letter in "abcdefg"),
    )
    assert plain.finished.reason == "content_filter" and plain.text
    cut = [answer for answer in formed_ones if answer.finished.reason == "content_filter"]
    assert any(answer.finished.completion_tokens > 1 for answer in cut)
    assert all(answer.content == ("", []) for answer in cut)
    for answer in formed_ones:
        if answer not in cut:
            jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_a_guard_that_fires_on_the_prompt_blocks_it_as_ever(bytewise: RunningText) -> None:
    (answer,) = prepared(bytewise, formed(bytewise, "block-always"))
    assert isinstance(answer.end, ContentBlocked)


def test_a_form_that_is_cut_by_max_tokens_says_so(bytewise: RunningText) -> None:
    for answer in prepared(
        bytewise,
        formed(bytewise, max_tokens=5, temperature=0.0),
        formed(bytewise, "block-watchful", max_tokens=5, temperature=0.0),
    ):
        assert answer.finished.reason == "length"
        assert answer.text.startswith("{") and len(answer.tokens) == 5


def test_unsupported_schemas_are_refused_before_the_row_is_queued(bytewise: RunningText) -> None:
    bad = Constraint.json_schema({"not": {}}, param="response_format")
    with pytest.raises(RequestError, match="unsupported keywords.*not") as caught:
        prepared(bytewise, formed(bytewise, constraint=bad))
    assert caught.value.param == "response_format"


def test_an_answer_that_cannot_be_followed_is_an_error(bytewise: RunningText) -> None:
    item = {"type": "object", "properties": {f"p{i}": {} for i in range(900)}}
    wild = Constraint.json_schema({"type": "array", "items": item}, param="response_format")
    (closing,) = byte_tokenizer().encode("]", add_special_tokens=False)
    options = SamplingOptions(logit_bias=((closing, -100.0),))
    failed, fine = prepared(
        bytewise, formed(bytewise, constraint=wild, options=options), formed(bytewise)
    )
    assert isinstance(failed.end, RequestError) and failed.end.param == "response_format"
    jsonschema.validate(json.loads(fine.text), SCHEMA)


def test_stop_tokens_and_ignored_ends(bytewise: RunningText) -> None:
    plain, stopped = answers(
        bytewise,
        request(bytewise, max_tokens=30),
        request(bytewise, max_tokens=30, options=SamplingOptions(logit_bias=((END, 100.0),))),
    )
    assert stopped.finished.reason == "stop" and stopped.finished.completion_tokens == 1
    third = plain.tokens[2].token_id
    on, least, ended = answers(
        bytewise,
        request(bytewise, max_tokens=4, options=SamplingOptions(ignore_eos=True,
                logit_bias=((END, 100.0),))),
        request(bytewise, max_tokens=30, options=SamplingOptions(min_tokens=3,
                logit_bias=((END, 100.0),))),
        request(bytewise, max_tokens=30, options=SamplingOptions(stop_token_ids=(third,))),
    )  # fmt: skip
    assert (on.finished.reason, on.finished.completion_tokens) == ("length", 4)
    assert (least.finished.reason, least.finished.completion_tokens) == ("stop", 4)
    first = [token.token_id for token in plain.tokens].index(third)
    assert ended.finished.reason == "stop" and ended.finished.completion_tokens == first + 1
    assert [token.token_id for token in ended.tokens] == [
        token.token_id for token in plain.tokens[:first]
    ]


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_tokens_that_the_model_does_not_have_are_refused(bytewise: RunningText, name: str) -> None:
    value: Any = ((9999, 1.0),) if name == "logit_bias" else (9999,)
    with pytest.raises(RequestError) as caught:
        answers(bytewise, request(bytewise, options=SamplingOptions(**{name: value})))
    assert (caught.value.param, caught.value.code) == (name, "invalid_parameter")


def test_a_model_with_an_unknown_tokenizer_has_no_forms(shared: RunningText) -> None:
    with pytest.raises(RequestError, match="not supported for this model") as caught:
        prepared(shared, formed(shared))
    assert caught.value.param == "response_format"


def test_callers_take_turns_and_one_has_few_places(
    bytewise: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many new schemas of one caller delay the schema of another by one."""
    compiler = bytewise.service._constraints
    go, order = threading.Event(), list[str]()

    def compiled(constraint: Constraint) -> None:
        go.wait(5)
        order.append(json.loads(constraint.text)["const"])

    monkeypatch.setattr(compiler, "_compile", compiled)

    def new(name: str, caller: str) -> TextRowRequest:
        constraint = Constraint.json_schema({"const": name}, param="response_format")
        return replace(formed(bytewise, constraint=constraint), caller=caller)

    async def crowd() -> list[Any]:
        rows = [new(f"many {i}", "greedy") for i in range(3 * QUEUED)]
        many = [asyncio.create_task(bytewise.service.prepare([row])) for row in rows]
        await asyncio.sleep(0.1)
        one = asyncio.create_task(bytewise.service.prepare([new("one", "modest")]))
        await asyncio.sleep(0.1)
        go.set()
        await one
        return await asyncio.gather(*many, return_exceptions=True)

    ends = run(crowd)
    refused = [end for end in ends if isinstance(end, TooManyRequests)]
    assert refused and "compiled" in str(refused[0])
    assert len(refused) + len(order) - 1 == 3 * QUEUED
    assert order.index("one") <= 2


def test_a_refused_schema_is_refused_again_without_work(
    bytewise: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = formed(bytewise, constraint=Constraint.json_schema({"not": {}}, param="x"))
    with pytest.raises(RequestError):
        prepared(bytewise, wrong)
    monkeypatch.setattr(bytewise.service._constraints, "_compiling", None)
    with pytest.raises(RequestError, match="not"):
        prepared(bytewise, wrong)


@pytest.mark.parametrize("names", [{"odd"}, {"plain", "odd"}])
def test_a_schema_that_cannot_be_followed_is_that_of_its_tool(
    bytewise: RunningText, names: set[str]
) -> None:
    def tool(name: str, schema: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    odd = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = OfferedTools(
        (tool("plain", {}), tool("odd", odd)),
        frozenset(names),
        "required",
        parameters_at="input_schema",
    )
    constraint = tools.constraint(HERMES, None)
    assert constraint is not None and constraint.param == "tool_choice"
    with pytest.raises(RequestError, match="of the tool 'odd'") as caught:
        prepared(bytewise, formed(bytewise, constraint=constraint))
    assert caught.value.param == "tools[1].input_schema"
