"""`/guard/v1/me`, `/guard/v1/traffic` and the texts of requests."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from guard.config.policy_schema import Place
from guard.tenants.levels import Role
from guard.verdict import GuardVerdict, Outcome


class Caller(TypedDict):
    """Who a key is of; `role` null without a key. `keyed`: models need one. `administered`: there
    are keys of administrators. `offers` are the parts of the server that the caller may use."""

    object: Literal["caller"]
    name: str | None
    role: Role | None
    keyed: bool
    administered: bool
    offers: list[str]


class TrafficEntry(TypedDict):
    """A request that has ended, as in the audit log; `id` counts the requests of this server since
    its start. `text_kept`: `/guard/v1/traffic/{id}/text` has its text."""

    id: int
    time: str
    tenant: str
    request_id: str
    model: str
    policy: str
    outcome: Outcome
    guards: list[GuardVerdict]
    elapsed_ms: float
    unscreened: list[str]
    text_kept: bool


class TrafficPage(TypedDict):
    """Some of the last requests, the newest first."""

    object: Literal["list"]
    data: list[TrafficEntry]
    has_more: bool


class KeptText(TypedDict):
    """A text of a request: who says it, and the member of the body that it is."""

    place: Place
    path: str
    text: str


class TrafficText(TypedDict):
    """What a request said. `not_text`: the kinds of content in it that are not text."""

    object: Literal["traffic.text"]
    id: int
    texts: list[KeptText]
    not_text: list[str]
