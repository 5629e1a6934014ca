"""Chats with images to prompts: text and placeholder tokens, media and positions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.engines.transformers.tokens import PromptTokenizer
from steering.engines.transformers.vision.base import VisionFamily
from steering.prompt import Media, Prompt

Pixels = NDArray[np.uint8]


class VisionPrompts:
    """Prompts of one vision-language model.

    What somebody wrote never becomes an image: the names of placeholder tokens are text in a
    message, as those of control tokens are (see PromptTokenizer).
    """

    def __init__(self, tokenizer: Any, family: VisionFamily) -> None:
        self.family = family
        self._tokens = PromptTokenizer(tokenizer, names=family.names)
        self._takes_parts = _takes(tokenizer, [{"type": "text", "text": _PROBE}])
        self._takes_strings = not self._takes_parts or _takes(tokenizer, _PROBE)
        # stands for an image in a template of strings alone; letters and digits, as of a word
        self._stand_in = secrets.token_hex(12)

    def prepare(self) -> None:
        """As `PromptTokenizer.prepare`."""
        self._tokens.prepare()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        beginning: str = "",
        *,
        turn: int | None = None,
    ) -> Prompt:
        """The prompt of `messages` and `tools` in the chat template, the generation prompt added,
        and behind it the `beginning` of the answer; guards decide from the message `turn` on.

        The `content` of a message is a string, or a list of `{"type": "text", "text": str}` and
        `{"type": "image", "image": uint8 [height, width, 3]}`. Templates that take strings alone
        get each image as a line of its own.

        Raises what the template raises, and ValueError for parts of another kind, for an image that
        the model does not take, and where the template leaves out an image.
        """
        images = [part["image"] for message in messages for part in _image_parts(message)]
        written = [self._for_template(message) for message in messages]

        def with_placeholders(rendered: str) -> str:
            return self._expanded(rendered, images)

        tokens = self._tokens.chat(written, with_placeholders, tools=tools, beginning=beginning)
        media = self._media(tokens, images)
        positions = self.family.positions(tokens, media) if media else None
        before = 0
        if turn is not None:
            before = self._tokens.before_turn(written, turn, tokens, with_placeholders, tools=tools)
        return Prompt(tuple(tokens), media, positions, before)

    def text(self, text: str, *, special: bool = True) -> Prompt:
        """The prompt of a text without images, as `PromptTokenizer.text`."""
        return Prompt(tuple(self._tokens.text(text, special=special)))

    def _for_template(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str):
            if self._takes_strings:
                return dict(message)
            return {**message, "content": [{"type": "text", "text": content}]}
        if not isinstance(content, Sequence):
            return dict(message)  # a call of a tool has none
        if self._takes_parts:
            parts = [_without_pixels(part) for part in content]
            return {**message, "content": parts}
        return {**message, "content": "".join(self._as_string(part) for part in content)}

    def _as_string(self, part: Mapping[str, Any]) -> str:
        return f"{self._stand_in}\n" if part.get("type") == "image" else str(_text_of(part))

    def _expanded(self, rendered: str, images: Sequence[Pixels]) -> str:
        marker = self.family.marker
        texts = rendered.replace(self._stand_in, marker).split(marker)
        if len(texts) != len(images) + 1:
            raise ValueError(
                f"the model's chat template writes {len(texts) - 1} images where the messages have "
                f"{len(images)}"
            )
        out = [texts[0]]
        for pixels, text in zip(images, texts[1:], strict=True):
            out += [self.family.text(*pixels.shape[:2]), text]
        return "".join(out)

    def _media(self, tokens: Sequence[int], images: Sequence[Pixels]) -> tuple[Media, ...]:
        places = np.flatnonzero(np.array(tokens) == self.family.image_token)
        counts = [self.family.count(*pixels.shape[:2]) for pixels in images]
        if len(places) != sum(counts):
            raise ValueError(
                f"the prompt has {len(places)} placeholder tokens where its images need "
                f"{sum(counts)}: the tokenizer and the configuration of the model do not agree"
            )
        media, first = [], 0
        for pixels, count in zip(images, counts, strict=True):
            last = first + count
            media.append(Media("image", pixels, int(places[first]), int(places[last - 1]) + 1))
            first = last
        return tuple(media)


_PROBE = "guard"


def _takes(tokenizer: Any, content: Any) -> bool:
    """Whether the chat template writes a message with this content as its text."""
    message = {"role": "user", "content": content}
    try:
        rendered = tokenizer.apply_chat_template([message], tokenize=False)
    except Exception:  # templates are programs: they raise what they like
        return False
    # a template of strings writes a list as Python or JSON does, with quotes
    return _PROBE in rendered and not any(f"{q}{_PROBE}{q}" in rendered for q in "'\"")


def _image_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return []
    for part in content:
        if not isinstance(part, Mapping):
            raise ValueError("a part of a message is no object with a type")
    return [part for part in content if part.get("type") == "image"]


def _without_pixels(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "image":
        return {"type": "image"}
    return {"type": "text", "text": _text_of(part)}


def _text_of(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ValueError(
            f"a part of a message is of type {part.get('type')!r}: give parts of type 'text' and "
            "'image'"
        )
    return str(part["text"])
