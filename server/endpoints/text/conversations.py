"""From the conversation of a request, in whichever API it came, to the prompt of a served model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.errors import RequestError
from server.endpoints.gateway import Admission, Gateway
from server.errors import InvalidParameter, UnsupportedParameter
from server.services.interface import LanguageModelInfo, TextService
from server.services.prompts import AT_ONCE, encoded
from server.services.tools.offered import OfferedTools
from server.wire.schemas.conversation import ImageUpload, Turn, characters_of
from server.wire.uploads import decode_uploads
from steering.prompt import Prompt

MESSAGE_SIZE = 64
"""Characters that the chat template adds to a message, roughly."""
TOOL_SIZE = 64
"""Characters that it adds to a tool's definition, roughly."""


class Conversation(Protocol):
    """A body with a conversation, which stands at `conversation_at`."""

    conversation_at: ClassVar[str]

    def turns(self) -> list[Turn]:
        """The conversation. Raises InvalidParameter."""

    def offered_tools(self) -> OfferedTools | None:
        """The tools that answers may call, None for none. Raises InvalidParameter."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The prompt of a conversation, and the tools that its answers may call."""

    prompt: Prompt
    tools: OfferedTools | None


async def chat_prompt(
    gateway: Gateway,
    admission: Admission[Any, TextService],
    turns: Sequence[Turn] | None = None,
) -> ChatPrompt:
    """The prompt of an admitted conversation, its images decoded beside the event loop.

    `turns` None are those of the body. Raises RequestError for images that the model or the server
    does not take, where the chat template does not take the messages, and for tools where it knows
    none.
    """
    body: Conversation = admission.body
    service, tools = admission.service, body.offered_tools()
    turns = body.turns() if turns is None else turns
    uploads = [image for turn in turns for image in turn.images]
    by_turn = admission.config.policy(admission.policy).scope == "turn"
    size = _size(turns, tools) * (2 if by_turn else 1)  # of a turn, the beginning is encoded too
    pixels: Sequence[NDArray[np.uint8]] = ()
    if uploads:
        _require_room(gateway, service.info, turns, uploads, body.conversation_at)
        async with gateway.decoding:
            pixels = await asyncio.to_thread(decode_uploads, uploads)
        size += AT_ONCE  # image processors take their time, too
    try:
        encode = partial(service.encode_chat, tools=tools, by_turn=by_turn)
        return ChatPrompt(await encoded(encode, _messages(turns, pixels), size), tools)
    except RequestError as error:
        if error.param == "messages":
            error.param = body.conversation_at
        raise


def _size(turns: Sequence[Turn], tools: OfferedTools | None) -> int:
    """Characters that the chat template may make of a conversation, roughly."""
    size = sum(turn.characters + MESSAGE_SIZE for turn in turns)
    definitions = tools.definitions if tools else ()
    return size + sum(characters_of(definition) + TOOL_SIZE for definition in definitions)


def _require_room(
    gateway: Gateway,
    info: LanguageModelInfo,
    turns: Sequence[Turn],
    uploads: Sequence[ImageUpload],
    where: str,
) -> None:
    """Refuse images that no decoding would make fit."""
    first = uploads[0].param
    if not info.sees:
        raise UnsupportedParameter(
            f"The model {info.name!r} takes text alone with the engine {info.engine!r}: leave the "
            f"image in '{first}' out, or ask a model whose 'input_modalities' in /v1/models have "
            '"image".',
            param=first,
        )
    for turn in turns:
        if turn.role != "user" and turn.images:
            param = turn.images[0].param
            raise UnsupportedParameter(
                f"'{param}' is an image in a message of the role '{turn.role}'; send images in "
                "messages of the user.",
                param=param,
            )
    most = gateway.config.server.max_input_images
    if len(uploads) > most:
        raise InvalidParameter(
            f"The request has {len(uploads)} images; this server takes at most {most} at once "
            "('max_input_images').",
            param=where,
        )


def _messages(turns: Sequence[Turn], pixels: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """The messages of chat templates: a text, or parts where a message has images, and members of
    its own for calls of tools."""
    images = iter(pixels)
    called = {call.id: call.name for turn in turns for call in turn.calls}
    return [
        {"role": turn.role, "content": _content(turn, images)} | _of_tools(turn, called)
        for turn in turns
    ]


def _content(turn: Turn, images: Iterator[NDArray[np.uint8]]) -> str | list[dict[str, Any]]:
    if not turn.images:
        return "\n".join(turn.texts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": next(images)}
        for part in turn.parts
    ]


def _of_tools(turn: Turn, called: Mapping[str, str]) -> dict[str, Any]:
    """Members that say whose a message is, what it calls, and which call it answers."""
    name = turn.name or called.get(turn.call_id or "")
    members = {
        "name": name,
        "tool_call_id": turn.call_id,
        "reasoning_content": turn.reasoning,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.calls
        ],
    }
    return {member: value for member, value in members.items() if value}
