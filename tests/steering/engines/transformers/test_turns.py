"""Where the last turn of the user begins in a prompt."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest

from steering.engines.transformers.tokens import PromptTokenizer, start_of_turn
from tests.steering.engines.transformers.test_tokens import tokenizer

HISTORY = [
    {"role": "user", "content": "the end of a start"},
    {"role": "assistant", "content": "end"},
]
USER, ANSWER = HISTORY
LAST = {"role": "user", "content": "start of the end"}


def turn_text(kind: str, messages: list[dict[str, Any]]) -> str:
    """What stands from the last turn of the user on."""
    tokens = PromptTokenizer(tokenizer(kind))
    ids, turn = tokens.chat(messages), start_of_turn(messages)
    assert turn is not None
    return str(tokenizer(kind).decode(ids[tokens.before_turn(messages, turn, ids) :]))


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_last_turn_begins_with_the_last_message_of_the_user(kind: str) -> None:
    text = turn_text(kind, [*HISTORY, LAST])
    assert text.lstrip().startswith("start of the end") and "assistant" in text
    assert turn_text(kind, [LAST]).lstrip().startswith("start of the end")


@pytest.mark.parametrize("content", ["<|im_end|> s", "  start", "start</s>", "<tool_call>"])
def test_it_is_found_behind_names_of_control_tokens_and_spaces(content: str) -> None:
    earlier = {"role": "user", "content": "<|im_start|>user a"}
    text = turn_text("bytes", [earlier, ANSWER, {"role": "user", "content": content}])
    assert text.lstrip().startswith(content.strip()) and "user" not in text


def test_what_follows_the_user_belongs_to_the_turn() -> None:
    tool = {"role": "tool", "content": "the start"}
    assert "the start" in turn_text("bytes", [*HISTORY, LAST, tool])


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
TOOL = {"role": "tool", "content": "the start"}
SYSTEM = {"role": "system", "content": "the end"}


@pytest.mark.parametrize(
    ("messages", "turn"),
    [
        ([SYSTEM], None),
        ([ANSWER], None),
        ([SYSTEM, USER], 1),
        ([USER, USER], 0),
        ([USER, ANSWER, USER, USER], 2),
        ([USER, ANSWER, SYSTEM, USER], 3),
        # what the user says beside a result of a tool
        ([USER, CALL, TOOL, USER], 0),
        ([USER, ANSWER, USER, CALL, TOOL, CALL, TOOL, TOOL], 2),
        ([USER, CALL, TOOL, ANSWER, USER], 4),
        # an answer that is to be continued ends no turn
        ([USER, ANSWER, USER, ANSWER], 2),
    ],
)
def test_a_turn_begins_behind_the_last_answer_that_calls_no_tools(
    messages: list[dict[str, Any]], turn: int | None
) -> None:
    assert start_of_turn(messages) == turn


def test_all_that_the_user_says_at_once_is_one_turn() -> None:
    text = turn_text("bytes", [*HISTORY, LAST, {"role": "user", "content": "a"}])
    assert text.startswith("start of the end")


def test_the_first_token_of_a_turn_may_begin_in_the_template() -> None:
    """As in Llama 2: the space before the text is the template's, and part of its first token."""
    joining = copy(tokenizer("words"))
    joining.chat_template = "{% for m in messages %}end {{ m.content }}{% endfor %}"
    tokens, messages = PromptTokenizer(joining), [{"role": "user", "content": "start"}]
    ids = tokens.chat(messages)
    assert len(joining("end ", add_special_tokens=False).input_ids) == 2
    assert joining.convert_ids_to_tokens(ids)[1].startswith("\u2581s")
    assert tokens.before_turn(messages, 0, ids) == 1


def test_a_template_that_leaves_the_user_out_is_refused() -> None:
    silent = tokenizer("bytes")
    template = silent.chat_template
    try:
        silent.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
        tokens = PromptTokenizer(silent)
        with pytest.raises(ValueError, match="leaves out the first message of the last turn"):
            tokens.before_turn([LAST], 0, tokens.chat([LAST]))
    finally:
        silent.chat_template = template
