"""`/guard/v1/erasures`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from guard.certificate import Fired, State, Step

# a member of an erasure is called `list`
_Names = list[str]
_Steps = list[Step]


class ErasureProgress(TypedDict):
    stage: str
    done: int
    total: int


class Erasure(TypedDict):
    """A demand to forget something, and what has become of it."""

    id: str
    object: Literal["erasure"]
    name: str
    aliases: _Names
    model: str
    policies: _Names
    list: str | None
    entry: str | None
    state: State
    reason: str | None
    progress: ErasureProgress | None
    created: str
    history: _Steps
    guards: _Names
    figures: dict[str, str] | None
    judgement: str | None
    fired: dict[str, Fired]


class ErasureList(TypedDict):
    object: Literal["list"]
    data: list[Erasure]
    has_more: bool
    last_id: str | None


class ErasureEvent(TypedDict):
    """A state, or a part of a stage; the last one has the final state."""

    id: str
    state: State
    stage: NotRequired[str]
    done: NotRequired[int]
    total: NotRequired[int]
    reason: NotRequired[str]
