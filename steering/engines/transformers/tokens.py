"""Text to token ids: what somebody wrote never becomes a control token.

A tokenizer parses the names of its control tokens (`<|im_end|>`, `<s>`) wherever they stand, and a
chat template writes them between messages. A message that holds such a name would end its own turn
and begin another one. Here the names count where the template wrote them, and nowhere else.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from tokenizers import AddedToken, Tokenizer


class PromptTokenizer:
    """Token ids of chats and texts, with a fast tokenizer of transformers.

    With a slow one, which cannot keep names apart, names count everywhere.

    Text without the name of a control token has the ids that the tokenizer itself gives. Control
    tokens are the special ones, and added ones that the chat template writes (`<tool_call>`); the
    latter count in messages of the assistant too, whose answers show them as text.
    """

    def __init__(self, tokenizer: Any, names: Collection[str] = ()) -> None:
        """`names` are added tokens that are control tokens whatever the tokenizer says: those that
        stand for images."""
        self._tokenizer = tokenizer
        self._special, self._written = _control_tokens(tokenizer, names)
        # random, so that no text holds it; letters and digits, which templates leave alone
        self._nonce = secrets.token_hex(8)

    def prepare(self) -> None:
        """Do now what the first text with the name of a control token would wait for."""
        if self._names:
            _ = self._plain

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        change: Callable[[str], str] = str,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        beginning: str = "",
    ) -> list[int]:
        """Token ids of `messages` and `tools` in the chat template, the generation prompt added.

        `change` is applied to what the template has written, in which no name of a control token
        comes from a message or a tool. `beginning` is what the answer begins with; names of control
        tokens in it are such tokens. Raises what `change` and the template raise, and ValueError
        where the template changes the name of a control token that a message or a tool holds.
        """
        text, is_careful = self._written_out(messages, tools, change, beginning)
        ids = self._careful_ids if is_careful else self._ids
        return ids(text, special=False)

    def before_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        turn: int,
        prompt: Sequence[int],
        change: Callable[[str], str] = str,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> int:
        """How many tokens of `prompt`, the ids of `chat(messages, ...)`, stand before the text of
        the message `turn`; a token that has text of the template and of the message is none of
        them. Raises as `chat`, and ValueError where the template leaves that message out.
        """
        mark, first = f"{secrets.token_hex(8)}t", messages[turn]
        content = first.get("content")
        if isinstance(content, str):
            marked: Any = f"{mark}{content}"
        else:
            marked = [{"type": "text", "text": mark}, *(content or ())]
        with_mark = [*messages]
        with_mark[turn] = {**first, "content": marked}
        text, is_careful = self._written_out(with_mark, tools, change)
        head, found, _ = text.partition(mark)
        if not found:
            raise ValueError("it leaves out the first message of the last turn")
        ids = self._careful_ids if is_careful else self._ids
        both = zip(ids(head, special=False), prompt, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))

    def _written_out(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        change: Callable[[str], str],
        beginning: str = "",
    ) -> tuple[str, bool]:
        """The conversation in the chat template, and whether it has stand-ins for names of control
        tokens."""
        if not self._mentions(_strings([*messages, *tools])):
            return change(self._rendered(messages, tools)) + beginning, False
        hidden = [self._hidden(message) for message in messages]
        rendered = change(self._rendered(hidden, [self._hidden(tool) for tool in tools]))
        rendered += beginning
        for name, stand_in in self._stand_ins.items():
            rendered = rendered.replace(name, stand_in)
        for name, mark in self._marks.items():
            rendered = rendered.replace(mark, name)
        if self._nonce[:8] in rendered.lower():
            raise ValueError("it changes the name of a control token in a message")
        return rendered, True

    def text(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around one (a `<s>`).

        Raises ValueError where the tokenizer has no other ids for the name of a control token.
        """
        if not self._mentions([text]):
            return self._ids(text, special=special)
        return self._careful_ids(text, special=special)

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _mentions(self, strings: Iterable[str]) -> bool:
        text = "\n".join(strings)
        if any(name in text for name in self._names):
            return True
        if self._normalizer is None:
            return False
        normalized = self._normalizer.normalize_str(text)
        return any(name in normalized for name in self._normalized_names)

    def _hidden(self, message: Mapping[str, Any]) -> Any:
        """The message or the tool, with marks in place of names of control tokens."""
        names = self._special if message.get("role") == "assistant" else self._names

        def hide(text: str) -> str:
            for name in names:
                text = text.replace(name, self._marks[name])
            return text

        return _mapped(message, hide)

    def _careful_ids(self, text: str, *, special: bool) -> list[int]:
        """As `_ids`, but stand-ins alone count as control tokens."""
        plain, ids_of = self._plain
        # the batched call releases the lock of the interpreter
        (encoding,) = plain.encode_batch([text], add_special_tokens=special)
        added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        if any(token in self._controls and not wrapped for token, wrapped in added):
            raise ValueError("it holds the name of a control token, which cannot be read as text")
        return [ids_of.get(token, token) for token in encoding.ids]

    @cached_property
    def _names(self) -> Sequence[str]:
        """The names of control tokens, the longest first: one may be part of another."""
        return sorted([*self._special, *self._written], key=len, reverse=True)

    @cached_property
    def _normalizer(self) -> Any:
        """What a text passes before some names are looked for in it, None for nothing."""
        controls = (*self._special.values(), *self._written.values())
        if not any(token.normalized for token in controls):
            return None
        return self._tokenizer.backend_tokenizer.normalizer

    @cached_property
    def _normalized_names(self) -> Sequence[str]:
        names = {self._normalizer.normalize_str(name) for name in self._names}
        # some normalizers put a space before a text, and the name may stand in its middle
        return [*{name.strip(" \u2581") for name in names} - {""}]

    @cached_property
    def _marks(self) -> Mapping[str, str]:
        """What stands for a name in a message while the template runs."""
        return {name: f"{self._nonce}{at}x" for at, name in enumerate(self._names)}

    @cached_property
    def _stand_ins(self) -> Mapping[str, str]:
        """What stands for a name that the template wrote."""
        nonce = secrets.token_hex(8)
        return {name: f"{nonce}{at}x" for at, name in enumerate(self._names)}

    @cached_property
    def _controls(self) -> frozenset[int]:
        """The ids that no text may have; a character that the tokenizer does not know may."""
        backend = self._tokenizer.backend_tokenizer
        return frozenset(map(backend.token_to_id, self._names)) - {self._tokenizer.unk_token_id}

    @cached_property
    def _plain(self) -> tuple[Tokenizer, Mapping[int, int]]:
        """The tokenizer with stand-ins in place of names, and the control token of each stand-in.

        The tokenizer's own way with what is around a control token stays: spaces that it takes in,
        a space that it puts before the first word.
        """
        backend = self._tokenizer.backend_tokenizer
        written = json.loads(backend.to_str())
        for token in written["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self._names
        plain = Tokenizer.from_str(json.dumps(written))
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True  # special tokens are read as text
        tokens = self._special | self._written
        plain.add_tokens([_like(tokens[name], text) for name, text in self._stand_ins.items()])
        ids: dict[Any, int] = {
            plain.token_to_id(text): backend.token_to_id(name)
            for name, text in self._stand_ins.items()
        }
        return plain, ids


def start_of_turn(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """The message that the last turn of the user begins with; None where there is no turn.

    A turn is what the user and tools have said behind the last answer. An answer that calls tools
    is none yet: it is part of the turn.
    """
    said = [at for at, message in enumerate(messages) if message.get("role") in {"user", "tool"}]
    if not said:
        return None
    answers = [
        at
        for at, message in enumerate(messages[: said[-1]])
        if message.get("role") == "assistant" and not message.get("tool_calls")
    ]
    behind = answers[-1] if answers else -1
    return next(at for at in said if at > behind)


def end_of_turn(tokenizer: Any) -> int | None:
    """The control token that the chat template writes behind an answer; None where it writes none,
    or there is no template."""
    answer = secrets.token_hex(8)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # templates are programs: they raise what they like
        return None
    behind = rendered.rpartition(answer)[2].strip()
    special, written = _control_tokens(tokenizer, ())
    names = [name for name in (*special, *written) if behind.startswith(name)]
    if not names:
        return None
    return int(tokenizer.convert_tokens_to_ids(max(names, key=len)))


def _control_tokens(
    tokenizer: Any, names: Collection[str]
) -> tuple[dict[str, AddedToken], dict[str, AddedToken]]:
    """By name: special tokens and those of `names`, and other added ones that the chat template
    writes."""
    if not getattr(tokenizer, "is_fast", False):
        return {}, {}
    templates = tokenizer.chat_template or ""
    template = "".join(templates.values()) if isinstance(templates, dict) else str(templates)
    tokens = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = {
        token.content: token
        for token in tokens
        if (token.special and token.content.strip()) or token.content in names
    }
    written = {
        token.content: token
        for token in tokens
        if token.content not in special
        # words and runs of spaces that a tokenizer has added are text, and all templates write some
        and not (token.content.isalnum() or token.content.isspace())
        and token.content in template
    }
    return special, written


def _like(token: AddedToken, content: str) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(inner, change) for inner in value]
    return value
