"""The member `guard` of answers and errors."""

from __future__ import annotations

from typing_extensions import TypedDict

from guard.verdict import Outcome, Verdict


class VerdictOutcome(TypedDict):
    """What a client is told of a verdict where the operator lets it know the outcome alone."""

    request_id: str
    policy: str
    outcome: Outcome


Guard = Verdict | VerdictOutcome
"""The verdict on a request; answers have none for clients that are told nothing of it."""
