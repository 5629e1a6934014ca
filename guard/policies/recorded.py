"""The last requests that an audit log tells of, with the scores of their guards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from guard.errors import ReplayUnavailable

MOST = 10_000
"""Requests that are read at once."""
_BLOCK = 2**18
_FARTHEST = 2**28
"""Bytes of the log's end that are searched."""
_OF_ANSWERS = ("choices", "output", "content", "data", "error")
"""The members of answers, with which places in them begin."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The line of one request; `guards` are its verdicts by guard."""

    request_id: str
    time: str
    tenant: str
    model: str
    policy: str
    outcome: str
    guards: Mapping[str, Mapping[str, Any]]
    elapsed_ms: float = 0.0

    @property
    def began(self) -> float:
        """When the request began, in seconds since the epoch; 0 where that cannot be read."""
        try:
            return datetime.fromisoformat(self.time).timestamp() - self.elapsed_ms / 1000
        except ValueError:
            return 0.0


def is_of_answer(place: object) -> bool:
    """Whether a place in a verdict is one of an answer."""
    return isinstance(place, str) and place.startswith(_OF_ANSWERS)


def last_recorded(path: Path, most: int, policy: str | None = None) -> list[Recorded]:
    """The last requests in a log, the newest first: at most that many, under `policy` alone where
    one is given. Raises ReplayUnavailable where it cannot be read."""
    found: list[Recorded] = []
    try:
        for line in _backwards(path):
            if (request := _request(line, policy)) is not None:
                found.append(request)
                if len(found) == most:
                    break
    except OSError as error:
        raise ReplayUnavailable(
            f"The audit log cannot be read: {error.strerror}: nothing can be decided again."
        ) from error
    return found


def _request(line: bytes, policy: str | None) -> Recorded | None:
    # most lines of other policies need not be parsed
    if policy is not None and json.dumps(policy).encode() not in line:
        return None
    try:
        entry = json.loads(line)
        if policy not in {None, entry.get("policy")} or "event" in entry:
            return None
        # what was erased from a line is missing
        request_id, time, tenant, model = (
            str(entry.get(name) or "") for name in ("request_id", "time", "tenant", "model")
        )
        guards = {guard["guard"]: guard for guard in entry["guards"]}
        facts = (request_id, time, tenant, model, entry["policy"], entry["outcome"])
        return Recorded(*facts, guards, float(entry.get("elapsed_ms") or 0.0))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # half a line after a crash, or a foreign one


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of the file from the last one on. Raises OSError."""
    with path.open("rb") as file:
        start = file.seek(0, 2)
        first = max(0, start - _FARTHEST)
        rest = b""
        while start > first:
            size = min(_BLOCK, start - first)
            start -= size
            file.seek(start)
            lines = (file.read(size) + rest).split(b"\n")
            rest = lines.pop(0)
            yield from reversed(lines)
        yield rest
