"""What a request for an erasure asks for, and the erasure object."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guard.certificate import Asked
from guard.config.checks import NO_POLICY
from guard.config.schema import Config
from guard.config.screen_checks import ONLY_TEXT
from guard.errors import DataError, UnknownPolicy
from guard.fitting.erasure.documents import checked_name, checked_text
from server.erasures.lists import list_and_entry, require_no_list
from server.erasures.record import Record
from server.errors import InvalidParameter, MissingParameter
from server.wire.schemas.erasures import ErasureRequest

if TYPE_CHECKING:
    from server.erasures.service import Erasures


def asked_in(body: ErasureRequest, config: Config, erasures: Erasures) -> Asked:
    """What a request asks for. Raises InvalidParameter, UnknownPolicy and Conflict."""
    if body.model not in erasures.models:
        known = ", ".join(erasures.models) or "none"
        raise InvalidParameter(
            f"No model {body.model[:80]!r} can forget here: there is {known} (language models "
            "on the engine 'transformers').",
            param="model",
        )
    if not body.policies and body.list is None:
        raise MissingParameter("Missing required parameter: 'policies'.", param="policies")
    for index, name in enumerate(body.policies):
        param = f"policies[{index}]"
        if name in body.policies[:index]:
            raise InvalidParameter(f"The policy {name[:80]!r} is named twice.", param=param)
        if name not in config.policies:
            why = " has no guards, ever" if name == NO_POLICY else " is not configured"
            raise UnknownPolicy(f"The policy {name[:80]!r}{why}.", param=param)
        if (action := config.policies[name].action) in ONLY_TEXT:
            raise InvalidParameter(
                f"The policy {name!r} has the action {action!r}, which is for screens of text.",
                param=param,
            )
    for index, text in enumerate(body.documents):
        _checked(checked_text, text, f"documents[{index}]")
    asked = Asked(
        name=_checked(checked_name, body.name, "name"),
        aliases=tuple(
            _checked(checked_name, alias, f"aliases[{index}]")
            for index, alias in enumerate(body.aliases)
        ),
        documents=(),
        model=body.model,
        policies=tuple(body.policies),
        start=body.start or "shadow",
    )
    if body.list is not None:
        return list_and_entry(body, asked, config, erasures.entries(body.model))
    require_no_list(body)
    return asked


def erasure_object(record: Record, erasures: Erasures) -> dict[str, Any]:
    """What clients get of an erasure."""
    progress = erasures.progress(record.id)
    fired = erasures.fired(record)
    return {
        "id": record.id,
        "object": "erasure",
        "name": record.asked.name,
        "aliases": record.asked.aliases,
        "model": record.asked.model,
        "policies": record.asked.policies,
        "list": record.asked.list,
        "entry": record.asked.entry,
        "state": record.state,
        "reason": record.reason or None,
        "progress": progress
        and {"stage": progress.stage, "done": progress.done, "total": progress.total},
        "created": record.created,
        "history": [step.model_dump() for step in record.history],
        "guards": [each.gate.guard for each in record.gates],
        "figures": record.figures or None,
        "judgement": record.judgement or None,
        "fired": {state: counted.model_dump() for state, counted in fired.items()},
    }


def _checked(check: Callable[[str], str], text: str, param: str) -> str:
    try:
        return check(text)
    except DataError as error:
        raise InvalidParameter(f"Invalid '{param}': {error.message}.", param=param) from None
