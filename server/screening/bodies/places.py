"""The places of the texts of a request: who says them, by the objects that they are in."""

from __future__ import annotations

from guard.config.policy_schema import Place
from server.screening.bodies.fields import CONVERSATION, PARTS, PLACES, RESULTS


def in_conversation(path: str) -> bool:
    """Whether a path is that of a message, or in one."""
    return path.partition("[")[0] in CONVERSATION


def place_of_member(name: str, place: Place) -> Place:
    """The place of a member of an object at `place`."""
    if place == "arguments" and name in RESULTS:
        return "tool"  # the call of a hosted tool has what it has returned
    return PLACES.get(name, place)


def place_of_part(kind: str, place: Place) -> Place:
    """The place of a part of this `type`, in a message at `place`."""
    return next((found for end, found in PARTS if kind.endswith(end)), place)
