"""Tokens of an OpenID Connect issuer: JSON Web Tokens, judged by PyJWT."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import jwt

from guard.config.tenants_schema import OidcConfig
from guard.errors import GuardError, Unauthorized
from guard.tenants.levels import ROLES, Role

logger = logging.getLogger(__name__)
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Signatures with a key pair: with a shared secret, whoever checks a token could make one."""
_METADATA = "/.well-known/openid-configuration"
_MOST_BYTES = 2**20
_MOST_CHARS = 16_384
_PATIENCE_S = 5.0
_REFRESH_S = 300.0
_LEAST_S = 10.0
"""Between two requests for the issuer's keys: tokens of unknown keys are free to make."""
_MOST_KNOWN = 4096
Fetch = Callable[[str], Any]
_SUBJECT = re.compile(r"[!-~]{1,255}")
"""As OpenID Connect has it, without spaces."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says: the id of its team, "" for a role that asks no models, and of such a
    role the subject, whose acts are noted."""

    team: str
    role: Role
    subject: str = ""


class IdentityTokens:
    """Reads tokens; a thread reads the issuer's keys, for which no request waits.

    `fetch` gives the JSON value at a URL; `wall` gives seconds since the epoch.
    """

    def __init__(
        self,
        config: OidcConfig,
        fetch: Fetch | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._fetch, self._wall = config, fetch or fetch_json, wall
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._known: OrderedDict[bytes, tuple[float, Claims]] = OrderedDict()
        self._lock = threading.Lock()
        self._wanted, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="oidc", daemon=True)

    def open(self) -> None:
        """Read the keys, and go on reading them. An issuer that does not answer is logged, and
        asked again."""
        self._try_refresh()
        self._thread.start()

    def close(self) -> None:
        """Read no more keys."""
        self._stop.set()
        self._wanted.set()

    def read(self, token: str) -> Claims | None:
        """What a token says; None for what is no token. Raises Unauthorized for one that is not
        valid here."""
        if token.count(".") != 2 or len(token) > _MOST_CHARS or not token.isascii():
            return None
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            known = self._known.get(digest)
        if known is not None and self._wall() < known[0]:
            return known[1]
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return None
        expires, claims = self._judged(token, header)
        with self._lock:
            self._known[digest] = expires, claims
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return claims

    def _judged(self, token: str, header: dict[str, Any]) -> tuple[float, Claims]:
        key = self._keys.get(header.get("kid"))
        if key is None:
            self._wanted.set()
            raise Unauthorized(
                "The token is signed with a key that its issuer has not shown: if the key is new, "
                "try again in some seconds."
            )
        if header.get("alg") != key.algorithm_name:
            raise Unauthorized("The token is signed in another way than its issuer signs.")
        try:
            payload = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._config.audience,
                issuer=self._config.issuer,
                options={"require": ["exp", "iss", "aud"]},
                leeway=5,
            )
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired.") from None
        except jwt.PyJWTError as error:
            raise Unauthorized(f"The token is not valid here: {error}.") from None
        return float(payload["exp"]), self._claims(payload)

    def _claims(self, payload: dict[str, Any]) -> Claims:
        role = payload.get(self._config.role_claim, "tenant")
        if role not in ROLES:
            raise Unauthorized(f"The token's {self._config.role_claim!r} is none of the roles.")
        team = payload.get(self._config.team_claim, "")
        if role == "tenant" and (not isinstance(team, str) or not team):
            raise Unauthorized(f"The token names no team in {self._config.team_claim!r}.")
        if role == "tenant":
            return Claims(team, role)
        subject = payload.get("sub")
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise Unauthorized(
                f"A token of the role {role!r} says in 'sub' whose it is, in at most 255 printable "
                "characters of ASCII."
            )
        return Claims("", role, subject)

    def refresh(self) -> None:
        """Read the issuer's keys. Raises GuardError."""
        config = self._config
        url = config.jwks_url or _jwks_url(self._fetch, config.issuer or "")
        try:
            found = jwt.PyJWKSet.from_dict(self._fetch(url))
        except (jwt.PyJWTError, KeyError, TypeError, AttributeError) as error:
            raise GuardError(f"{url} has no keys that can be used: {error}") from None
        with self._lock:
            # a key that is withdrawn ends the tokens that it has signed
            self._known.clear()
            self._keys = {key.key_id: key for key in found.keys if key.algorithm_name in ALGORITHMS}

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except GuardError as error:
            logger.error("the keys of the token issuer could not be read: %s", error)
        except Exception:
            logger.exception("the keys of the token issuer could not be read")

    def _run(self) -> None:
        while not self._stop.wait(_LEAST_S):
            self._wanted.wait(_REFRESH_S)
            self._wanted.clear()
            if not self._stop.is_set():
                self._try_refresh()


def _jwks_url(fetch: Fetch, issuer: str) -> str:
    """Where an issuer says that its keys are; it must be the issuer's own host."""
    metadata = fetch(issuer.rstrip("/") + _METADATA)
    url = metadata.get("jwks_uri") if isinstance(metadata, dict) else None
    if not isinstance(url, str) or metadata.get("issuer") != issuer:
        raise GuardError(f"{issuer} has no metadata of an issuer of that name: check [oidc]")
    if urlsplit(url)[:2] != urlsplit(issuer)[:2]:
        raise GuardError(
            f"{issuer} has its keys at another host: if that is right, set jwks_url in [oidc]"
        )
    return url


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The keys are where the operator has said, nowhere else."""

    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def fetch_json(url: str) -> Any:
    """The JSON value at a URL of the configuration, of bounded size and time, without redirects.

    Raises GuardError.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(url, timeout=_PATIENCE_S) as response:
            return json.loads(_bounded(url, response))
    except (OSError, ValueError, RecursionError) as error:
        raise GuardError(f"{url} cannot be read: {error}") from None


def _bounded(url: str, response: IO[bytes]) -> bytes:
    content, until = b"", time.monotonic() + _PATIENCE_S
    # a read of all would start its patience anew at each byte of a slow answer
    while part := response.read1(65_536):  # type: ignore[attr-defined]
        content += part
        if len(content) > _MOST_BYTES:
            raise GuardError(f"{url} answers with more than {_MOST_BYTES} bytes")
        if time.monotonic() > until:
            raise GuardError(f"{url} takes more than {_PATIENCE_S:.0f} s to answer")
    return content
