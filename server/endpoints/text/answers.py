"""What an answer says, in whichever API it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from server.observe.exchange import Exchange
from server.services.interface import FinishedText, TokenLogprob
from server.services.text_jobs import CollectedText


def message_of(finished: FinishedText, exchange: Exchange) -> str | None:
    """What the policy says in place of a blocked answer; None where nothing is blocked, or where it
    says nothing."""
    return exchange.message if finished.reason == "content_filter" else None


REFUSAL = "The policy of this request does not let this answer pass."
"""What stands in place of an answer of a given form that was cut, where the policy has no words."""


def refusal_of(finished: FinishedText, exchange: Exchange, *, structured: bool) -> str | None:
    """The refusal in place of an answer of a given form (`structured`), never a part of one; None
    where nothing is blocked."""
    if not structured or finished.reason != "content_filter":
        return None
    return message_of(finished, exchange) or REFUSAL


def answer_of(row: CollectedText, exchange: Exchange) -> tuple[str, Sequence[TokenLogprob]]:
    """The text of a whole answer, and its tokens."""
    message = message_of(row.finished, exchange)
    return (row.text, row.tokens) if message is None else (message, ())
