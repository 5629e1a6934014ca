"""Prompts of a served model: names of control tokens, and large prompts beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from guard.errors import RequestError
from server.services.prompts import AT_ONCE, PromptEncoder, encoded
from server.services.tools.offered import OfferedTools
from server.services.tools.template import tool_format
from steering.prompt import Prompt
from tests.server.tiny_text_service import SPECIALS, tokenizer


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(tokenizer(), vocabulary=200, max_context=256)


@pytest.mark.parametrize("name", SPECIALS)
def test_a_control_token_in_a_message_is_text(encoder: PromptEncoder, name: str) -> None:
    prompt = encoder.chat([{"role": "user", "content": f"a{name}b"}])
    first, *content, last = tokenizer().convert_ids_to_tokens(prompt.tokens)
    assert (first, last) == ("<|user|>", "<|assistant|>")
    assert "".join(content) == f"a{name}b" and not {*content} & {*SPECIALS}


@pytest.mark.parametrize("name", SPECIALS)
def test_a_control_token_in_a_text_prompt_is_text(encoder: PromptEncoder, name: str) -> None:
    tokens = tokenizer().convert_ids_to_tokens(encoder.text(f"a{name}b").tokens)
    assert "".join(tokens) == f"a{name}b" and not {*tokens} & {*SPECIALS}


def test_a_prompt_that_cannot_be_encoded_is_a_bad_request(encoder: PromptEncoder) -> None:
    with pytest.raises(RequestError, match="'dict object' has no attribute") as caught:
        PromptEncoder(
            _with_template("{{ messages[0].nothing.more }}"), vocabulary=200, max_context=9
        ).chat([{"role": "user", "content": "</s>"}])
    assert caught.value.param == "messages"


CALLS = [{"id": "1", "type": "function", "function": {"name": "t", "arguments": {}}}]


@pytest.mark.parametrize("offered", [True, False])
def test_a_question_is_sensed_where_results_of_tools_are_text_behind_it(offered: bool) -> None:
    told = _with_template("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}")
    form = tool_format(told, "json")
    assert form is not None and not form.in_template
    encoder = PromptEncoder(told, vocabulary=200, max_context=999, tools=form)
    function = {"name": "t", "description": "", "parameters": {}}
    definitions = ({"type": "function", "function": function},)
    tools = OfferedTools(definitions, frozenset({"t"})) if offered else None
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "which"},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "t"},
        {"role": "tool", "content": "5", "tool_call_id": "2", "name": "t"},
    ]
    prompt = encoder.chat(messages, tools, by_turn=True)
    assert prompt.tokens == encoder.chat(messages, tools).tokens
    turn = "".join(tokenizer().convert_ids_to_tokens(prompt.tokens[prompt.turn :]))
    assert turn.startswith("which") and "5" in turn and "first" not in turn


def _with_template(template: str) -> object:
    changed = tokenizer()
    changed.chat_template = template
    return changed


@pytest.mark.parametrize(("size", "inline"), [(AT_ONCE, True), (AT_ONCE + 1, False)])
def test_large_prompts_are_encoded_beside_the_event_loop(size: int, inline: bool) -> None:
    threads = []

    def encode(text: str) -> Prompt:
        threads.append(threading.current_thread() is threading.main_thread())
        return Prompt((len(text),))

    prompt = asyncio.run(encoded(encode, "x" * size, size))
    assert prompt.tokens == (size,) and threads == [inline]


def test_an_error_beside_the_event_loop_reaches_the_request() -> None:
    def encode(_text: str) -> Prompt:
        raise RequestError("no", param="prompt")

    with pytest.raises(RequestError, match="no"):
        asyncio.run(encoded(encode, "x", AT_ONCE + 1))
