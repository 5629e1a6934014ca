from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from guard.config.tenants_schema import OidcConfig
from guard.errors import GuardError, Unauthorized
from guard.tenants import identity_tokens
from guard.tenants.identity_tokens import Claims, IdentityTokens, fetch_json

ISSUER = "https://login.example.com"
NOW = 1_800_000_000.0
PRIVATE = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)


def jwk(private: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    return public | {"kid": kid, "alg": "RS256", "use": "sig"}


class Issuer:
    """Answers of an issuer, by URL."""

    def __init__(self) -> None:
        self.keys = [jwk(PRIVATE, "k1")]
        self.asked: list[str] = []
        self.metadata = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}

    def __call__(self, url: str) -> Any:
        self.asked.append(url)
        return {"keys": self.keys} if url.endswith("/keys") else self.metadata


def reader(issuer: Issuer, **config: Any) -> IdentityTokens:
    settings = OidcConfig(issuer=ISSUER, audience="guard", **config)
    tokens = IdentityTokens(settings, issuer)
    tokens.refresh()
    return tokens


def signed(private: Any = PRIVATE, kid: str = "k1", algorithm: str = "RS256", **claims: Any) -> str:
    payload = {"iss": ISSUER, "aud": "guard", "exp": 4_000_000_000, "team": "acme/research"}
    payload = {k: v for k, v in (payload | claims).items() if v is not None}
    return jwt.encode(payload, private, algorithm=algorithm, headers={"kid": kid})


def test_a_token_says_the_team_or_the_role() -> None:
    tokens = reader(Issuer())
    assert tokens.read(signed()) == Claims("acme/research", "tenant")
    assert tokens.read(signed(role="auditor", sub="ann")) == Claims("", "auditor", "ann")
    own = reader(Issuer(), team_claim="group")
    assert own.read(signed(group="acme/sales")) == Claims("acme/sales", "tenant")


@pytest.mark.parametrize(
    "token",
    [
        signed(iss="https://evil.example.com"),
        signed(aud="other"),
        signed(aud=None),
        signed(exp=1),
        signed(exp=None),
        signed(nbf=3_900_000_000),
        signed(OTHER),
        signed(kid="k2"),
        signed(team=None),
        signed(team=["acme/research"]),
        signed(role="root"),
        signed(role=["admin"]),
        signed(role="admin"),
        signed(role="admin", sub=""),
        signed(role="admin", sub="ann\nbob"),
        signed(role="admin", sub="a" * 256),
        signed("secret" * 10, algorithm="HS256"),
        signed(None, algorithm="none"),
    ],
)
def test_no_other_token_is_taken(token: str) -> None:
    with pytest.raises(Unauthorized):
        reader(Issuer()).read(token)


def test_the_public_key_is_no_shared_secret() -> None:
    """The signature of a token that names HS256 is not checked with a key of RS256."""
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1"}').rstrip(b"=")
    payload = signed().split(".")[1].encode()
    with pytest.raises(Unauthorized):
        reader(Issuer()).read(b".".join((header, payload, b"AAAA")).decode())


@pytest.mark.parametrize("text", ["", "a.b.c", "sk-x", "..", "ä.b.c", "a" * 20_000 + ".b.c"])
def test_what_is_no_token_is_not_judged(text: str) -> None:
    assert reader(Issuer()).read(text) is None


def test_a_key_that_is_withdrawn_ends_its_tokens() -> None:
    issuer = Issuer()
    tokens = reader(issuer)
    token = signed()
    assert tokens.read(token) is not None
    issuer.keys = [jwk(OTHER, "k2")]
    tokens.refresh()
    with pytest.raises(Unauthorized):
        tokens.read(token)
    assert tokens.read(signed(OTHER, "k2")) is not None


def test_a_known_token_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [NOW]
    tokens = IdentityTokens(OidcConfig(issuer=ISSUER, audience="guard"), Issuer(), lambda: now[0])
    tokens.refresh()
    token = signed(exp=int(NOW) + 60)

    def expired(*_: Any, **__: Any) -> None:
        raise jwt.ExpiredSignatureError

    assert tokens.read(token) is not None
    monkeypatch.setattr(jwt, "decode", expired)
    assert tokens.read(token) is not None
    now[0] += 60
    with pytest.raises(Unauthorized, match="expired"):
        tokens.read(token)


def test_keys_come_from_the_issuer_alone() -> None:
    issuer = Issuer()
    issuer.metadata["jwks_uri"] = "https://keys.example.net/keys"
    with pytest.raises(GuardError, match="jwks_url"):
        reader(issuer)
    assert reader(issuer, jwks_url="https://keys.example.net/keys").read(signed()) is not None
    issuer.metadata = {"issuer": "https://other.example.com", "jwks_uri": f"{ISSUER}/keys"}
    with pytest.raises(GuardError, match="metadata"):
        reader(issuer)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/keys")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            with suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            return
        self.wfile.write(b"[" + b" " * 2**20 + b"]" if self.path == "/large" else b'{"keys": []}')

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_fetch_is_bounded_and_follows_no_redirect() -> None:
    with listening() as url:
        assert fetch_json(f"{url}/keys") == {"keys": []}
        for path in ("/away", "/large"):
            with pytest.raises(GuardError):
                fetch_json(url + path)


def test_a_fetch_of_a_slow_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "_PATIENCE_S", 0.3)
    with listening() as url, pytest.raises(GuardError, match="to answer"):
        fetch_json(f"{url}/slow")
