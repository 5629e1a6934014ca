"""What every client's file shares: commands come in as lines of JSON, results go out as lines.

A command is `Call`. A result is an object: `text`, `finish` and `tokens` of an answer, `name` and
`arguments` of a call, `object`, `vector`, `names`; or `error`: the classes of the exception, its
message, and what else its client tells of it; or `missing`: why the client does not offer this.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Call:
    """One thing that the client is to do."""

    do: str
    api: str
    url: str
    """Of the server or the proxy, without a path."""
    key: str
    model: str
    prompt: str
    stream: bool
    timeout: float
    forced: bool = False
    """Whether the model has to call the function, which a small one does not by itself."""
    retries: int = 0


class Contact(BaseModel):
    """Someone who can be written to."""

    name: str
    email: str
    note: str
    age: int


def send_mail(to: str, text: str, copies: int) -> str:
    """Send a mail."""
    return json.dumps({"sent": {"to": to}, "size": len(text), "copies": copies})


MAIL_SCHEMA = {
    "type": "object",
    "properties": {
        "to": {"type": "string"},
        "text": {"type": "string"},
        "copies": {"type": "integer"},
    },
    "required": ["to", "text", "copies"],
    "additionalProperties": False,
}


class Missing(Exception):
    """The client does not offer this; the text says why."""


class ErrorEvent(Exception):
    """The client gave an error of a stream as an event, not as an exception."""


Action = Callable[[Call], dict[str, Any]]


def run(actions: dict[str, Action], details: Callable[[BaseException], dict[str, Any]]) -> None:
    """Serve commands until the input ends; `details` are what a client's exception tells."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        result = _result(actions, details, Call(**json.loads(line)))
        out.write(json.dumps(result) + "\n")
        out.flush()


def _result(
    actions: dict[str, Action], details: Callable[[BaseException], dict[str, Any]], call: Call
) -> dict[str, Any]:
    if call.do not in actions:
        return {"missing": "not offered by this client"}
    try:
        return actions[call.do](call)
    except Missing as reason:
        return {"missing": str(reason)}
    except Exception as error:
        classes = [kind.__name__ for kind in type(error).__mro__]
        return {"error": {"classes": classes, "message": str(error)[:2000], **details(error)}}


def error_body(body: object) -> dict[str, Any]:
    """Type and code of an error's body, with or without its envelope."""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    return {"type": inner.get("type"), "code": inner.get("code")} if isinstance(inner, dict) else {}
