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


def answer_of(row: CollectedText, exchange: Exchange) -> tuple[str, Sequence[TokenLogprob]]:
    """The text of a whole answer, and its tokens."""
    message = message_of(row.finished, exchange)
    return (row.text, row.tokens) if message is None else (message, ())
