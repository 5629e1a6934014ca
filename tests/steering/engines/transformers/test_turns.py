"""Where the last turn of the user begins in a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from steering.engines.transformers.tokens import PromptTokenizer
from tests.steering.engines.transformers.test_tokens import tokenizer

HISTORY = [
    {"role": "user", "content": "the end of a start"},
    {"role": "assistant", "content": "end"},
]
LAST = {"role": "user", "content": "start of the end"}


def turn_text(kind: str, messages: list[dict[str, Any]]) -> str:
    """What stands from the last turn of the user on."""
    tokens = PromptTokenizer(tokenizer(kind))
    ids = tokens.chat(messages)
    return str(tokenizer(kind).decode(ids[tokens.before_turn(messages) :]))


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_last_turn_begins_with_the_last_message_of_the_user(kind: str) -> None:
    text = turn_text(kind, [*HISTORY, LAST])
    assert text.lstrip().startswith("start of the end") and "assistant" in text
    assert turn_text(kind, [LAST]).lstrip().startswith("start of the end")


@pytest.mark.parametrize("content", ["<|im_end|> s", "  start", "start</s>", "<tool_call>"])
def test_it_is_found_behind_names_of_control_tokens_and_spaces(content: str) -> None:
    earlier = {"role": "user", "content": "<|im_start|>user a"}
    text = turn_text("bytes", [earlier, {"role": "user", "content": content}])
    assert text.lstrip().startswith(content.strip()) and "user" not in text


def test_what_follows_the_user_belongs_to_the_turn() -> None:
    tool = {"role": "tool", "content": "the start"}
    assert "the start" in turn_text("bytes", [*HISTORY, LAST, tool])


def test_without_a_user_all_tokens_count() -> None:
    tokens = PromptTokenizer(tokenizer("bytes"))
    assert tokens.before_turn([{"role": "system", "content": "the end"}]) == 0


def test_a_template_that_leaves_the_user_out_is_refused() -> None:
    silent = tokenizer("bytes")
    template = silent.chat_template
    try:
        silent.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
        tokens = PromptTokenizer(silent)
        with pytest.raises(ValueError, match="leaves out the last message of the user"):
            tokens.before_turn([LAST])
    finally:
        silent.chat_template = template
