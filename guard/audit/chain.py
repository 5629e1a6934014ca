"""Lines of an audit log as links of a chain: `seq`, `prev`, and commitments to personal fields.

The SHA-256 of a line is over everything in it but the personal fields and their salts, whose place
is held by commitments: SHA-256 of a random salt and the value. So a value can be erased with its
salt while every digest holds, and nobody can tell it from the commitment by trying values.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

EVERY = 1000
"""The line of each seq that this divides is a checkpoint."""
CHECKPOINT = "audit checkpoint"
"""The `event` of signed lines; their `reason` is one of opened, count, time, rotated, closed."""
LOST = "audit lines lost"
"""The `event` of the line that says how many the disk or the queue had no room for."""
BROKEN = "audit broken off"
"""The `event` of the line that follows a crash."""
RECOVERED = "audit lines recovered"
"""The `event` of the line behind those that a process had left in its journal."""
PERSONAL = ("tenant", "request_id", "id", "by")
_ERASABLE = "salts"
_OF_THE_CHAIN = frozenset({"seq", "prev", "personal", _ERASABLE})
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Head(NamedTuple):
    """The end of a chain: the `seq` of its last line and the digest of that."""

    seq: int
    digest: str


START = Head(0, "0" * 64)


def encode(entry: Mapping[str, Any]) -> bytes:
    """The one spelling of a line, with its newline."""
    return _ENCODER.encode(entry).encode() + b"\n"


def link(entry: Mapping[str, Any], head: Head) -> dict[str, Any]:
    """`entry` as the line after `head`."""
    named = [name for name in PERSONAL if isinstance(entry.get(name), str) and entry[name]]
    random = os.urandom(16 * len(named)).hex()
    salts = {name: random[32 * place : 32 * place + 32] for place, name in enumerate(named)}
    line = {**entry, "seq": head.seq + 1, "prev": head.digest}
    if named:
        line["personal"] = {name: _commitment(salts[name], entry[name]) for name in named}
        line[_ERASABLE] = salts
    return line


def digest(line: Mapping[str, Any]) -> str:
    """The SHA-256 of a line, hex; the same before and after an erasure in it."""
    hidden = {_ERASABLE, *line.get("personal", ())}
    kept = {name: value for name, value in line.items() if name not in hidden}
    return hashlib.sha256(encode(kept)).hexdigest()


def head_of(line: bytes) -> Head | None:
    """The end of the chain whose last line this is; None where it is no line of a chain."""
    entry = parse(line)
    if entry is None or not is_linked(entry):
        return None
    return Head(entry["seq"], digest(entry))


def parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, None where it has none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def is_linked(entry: Mapping[str, Any]) -> bool:
    """Whether a line has the members of a chain, in their types."""
    personal, salts = entry.get("personal", {}), entry.get(_ERASABLE, {})
    return (
        type(entry.get("seq")) is int
        and isinstance(entry.get("prev"), str)
        and isinstance(personal, dict)
        and isinstance(salts, dict)
        and set(salts) <= set(personal) <= set(PERSONAL)
    )


def unlinked(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as it was before it was linked."""
    return {name: value for name, value in line.items() if name not in _OF_THE_CHAIN}


def unfit(line: Mapping[str, Any]) -> str | None:
    """The personal field that is not what the line commits to; an erased one is fit."""
    salts = line.get(_ERASABLE, {})
    for name, commitment in line.get("personal", {}).items():
        value, salt = line.get(name), salts.get(name)
        if value is None and salt is None:
            continue
        if not (isinstance(value, str) and isinstance(salt, str)):
            return str(name)
        if _commitment(salt, value) != commitment:
            return str(name)
    return None


def erased(line: Mapping[str, Any], tenant: str) -> dict[str, Any] | None:
    """`line` without what is personal to `tenant` (a key's id too); None where nothing is.

    A request of the tenant loses its `request_id` too, which its client may have chosen.
    """
    named = {name for name in line.get("personal", {}) if is_of(line.get(name), tenant)}
    if "tenant" in named and isinstance(line.get("request_id"), str):
        named.add("request_id")
    named &= line.get("personal", {}).keys()
    if not named:
        return None
    left = {name: salt for name, salt in line[_ERASABLE].items() if name not in named}
    cleared: dict[str, Any] = {**line, **dict.fromkeys(named), _ERASABLE: left}
    if not left:
        del cleared[_ERASABLE]
    return cleared


def is_of(value: object, tenant: str) -> bool:
    """Whether a member names the tenant, one of its teams, or the key of this id."""
    return isinstance(value, str) and (
        value in (tenant, f"key:{tenant}") or value.startswith(f"{tenant}/")
    )


def _commitment(salt: str, value: str) -> str:
    return hashlib.sha256(f"{salt}:{value}".encode("utf-8", "surrogatepass")).hexdigest()
