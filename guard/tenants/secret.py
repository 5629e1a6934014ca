"""API keys as their owners hold them: "sk-guard-ID-SECRET"."""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "sk-guard-"
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{16}})-[A-Za-z0-9_-]{{43}}")


def hash_key(key: str) -> str:
    """The hash of an API key, as in the configuration: `sha256:` and 64 hex digits.

    A secret of 256 random bits cannot be guessed from it: neither salt nor stretching is needed.
    """
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(identity: str | None = None) -> tuple[str, str]:
    """The id of a new API key, or the given one, and the key: 256 random bits behind its id."""
    identity = identity or secrets.token_hex(8)
    return identity, f"{PREFIX}{identity}-{secrets.token_urlsafe(32)}"


def id_in(key: str) -> str | None:
    """The id in an API key; None where it is not of our form."""
    found = _FORM.fullmatch(key)
    return found[1] if found else None
