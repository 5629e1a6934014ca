"""From the conversation of a request, in whichever API it came, to the prompt of a served model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.errors import RequestError
from server.endpoints.gateway import Admission, Gateway
from server.errors import InvalidParameter, UnsupportedParameter
from server.services.interface import LanguageModelInfo, TextService
from server.services.prompts import AT_ONCE, encoded
from server.wire.schemas.conversation import ImageUpload, Turn
from server.wire.uploads import decode_uploads
from steering.prompt import Prompt

MESSAGE_SIZE = 64
"""Characters that the chat template adds to a message, roughly."""


class Conversation(Protocol):
    """A body with a conversation, which stands at `conversation_at`."""

    conversation_at: ClassVar[str]

    def turns(self) -> list[Turn]:
        """The conversation. Raises InvalidParameter."""


async def chat_prompt(gateway: Gateway, admission: Admission[Any, TextService]) -> Prompt:
    """The prompt of an admitted conversation, its images decoded beside the event loop.

    Raises RequestError for images that the model or the server does not take, and where the chat
    template does not take the messages.
    """
    body: Conversation = admission.body
    service, turns = admission.service, body.turns()
    uploads = [image for turn in turns for image in turn.images]
    size = sum(sum(map(len, turn.texts)) + MESSAGE_SIZE for turn in turns)
    pixels: Sequence[NDArray[np.uint8]] = ()
    if uploads:
        _require_room(gateway, service.info, turns, uploads, body.conversation_at)
        async with gateway.decoding:
            pixels = await asyncio.to_thread(decode_uploads, uploads)
        size += AT_ONCE  # image processors take their time, too
    try:
        by_turn = gateway.config.policy(admission.policy).scope == "turn"
        encode = partial(service.encode_chat, by_turn=True) if by_turn else service.encode_chat
        return await encoded(encode, _messages(turns, pixels), size)
    except RequestError as error:
        if error.param == "messages":
            error.param = body.conversation_at
        raise


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
            f"The model {info.name!r} takes text alone: leave the image in '{first}' out, or ask a "
            "model whose 'input_modalities' in /v1/models have \"image\".",
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
    """The messages of chat templates: a text, or parts where a message has images."""
    images = iter(pixels)
    return [
        {"role": turn.role, "content": "\n".join(turn.texts)}
        if not turn.images
        else {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image", "image": next(images)}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
