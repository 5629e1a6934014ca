"""Rows of prompts as a chat model is asked them, with images where they have some."""

from __future__ import annotations

from collections.abc import Sequence

from guard.data.prompts import AskedRow
from guard.errors import DataError
from guard.models.chat import ChatModel
from steering.prompt import Prompt


def asked(chat: ChatModel, rows: Sequence[AskedRow]) -> list[str | Prompt]:
    """The prompts of rows, as `ChatModel.answer` takes them."""
    return [prompt_of(chat, row) if row.images else row.prompt for row in rows]


def prompt_of(chat: ChatModel, row: AskedRow) -> Prompt:
    """The prompt of a row. Raises DataError for images that the model does not take."""
    if not row.images:
        return chat.prompt(row.prompt)
    if not chat.sees:
        raise DataError(
            f"{', '.join(row.image)}: the model {chat.name!r} takes text alone: leave out the rows "
            "with images, or fit on a model that takes them"
        )
    try:
        return chat.prompt(row.prompt, row.images)
    except ValueError as error:
        raise DataError(f"{', '.join(row.image)}: {error}") from error
