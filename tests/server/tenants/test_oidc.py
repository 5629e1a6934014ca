"""Tokens of an identity provider at a running server: its own HTTP, real signatures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from guard.audit import AuditLog
from guard.config.schema import Config
from tests.server.live_server import LiveServer, live_server, settings
from tests.server.tenants.stand import asked, bearer, seeded

PRIVATE = rsa.generate_private_key(65537, 2048)


@contextmanager
def issuing() -> Iterator[str]:
    """An issuer that shows its key; its URL."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = f"http://127.0.0.1:{self.server.server_address[1]}"
            keys = {"keys": [key | {"kid": "k1", "alg": "RS256", "use": "sig"}]}
            known = {"/keys": keys, "/.well-known/openid-configuration": {"issuer": url}}
            answer = known[self.path] | (
                {} if self.path == "/keys" else {"jwks_uri": f"{url}/keys"}
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)


def token(issuer: str, **claims: Any) -> str:
    payload = {"iss": issuer, "aud": "guard", "exp": time.time() + 600, "sub": "ann", **claims}
    return jwt.encode(payload, PRIVATE, algorithm="RS256", headers={"kid": "k1"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[LiveServer, str, Path]]:
    """A server with the team acme/research of two requests a minute; its issuer and its log."""
    tenants = seeded(tmp_path / "tenants.sqlite", team={"requests_per_minute": 2})
    log = tmp_path / "audit.jsonl"
    with issuing() as issuer, AuditLog(log) as audit:
        raw = settings() | {
            "tenants": {"database": str(tenants.path), "refresh_s": 0.05},
            "oidc": {"issuer": issuer, "audience": "guard"},
        }
        with live_server(config=Config.model_validate(raw), audit=audit) as live:
            yield live, issuer, log


def test_a_token_asks_as_its_team_within_the_teams_limits(
    server: tuple[LiveServer, str, Path],
) -> None:
    live, issuer, log = server
    mine = token(issuer, team="acme/research")
    assert [asked(live, mine).status_code for _ in range(3)] == [200, 200, 429]
    assert json.loads(log.read_text().splitlines()[0])["tenant"] == "acme/research"
    for wrong in (token(issuer, team="acme/sales"), token(issuer), mine[:-8] + "AAAAAAAA"):
        assert asked(live, wrong).status_code == 401
    listed = httpx.get(f"{live.url}/guard/v1/teams", headers=bearer(mine), timeout=20)
    assert listed.json()["error"]["code"] == "role_forbidden"


def test_what_an_administrator_does_with_a_token_is_noted_by_its_subject(
    server: tuple[LiveServer, str, Path],
) -> None:
    live, issuer, log = server
    admin = token(issuer, role="admin", sub="ann@example.com")
    assert asked(live, admin).json()["error"]["code"] == "role_forbidden"
    url = f"{live.url}/guard/v1/teams/acme/research"
    changed = httpx.patch(url, json={"requests_per_minute": 9}, headers=bearer(admin), timeout=20)
    assert changed.status_code == 200
    line = json.loads(log.read_text().splitlines()[-1])
    assert (line["event"], line["act"], line["by"]) == ("tenants", "set", "token:ann@example.com")
    for nobody in (token(issuer, role="admin", sub=""), token(issuer, role="admin", sub="a b")):
        refused = httpx.delete(url, headers=bearer(nobody), timeout=20)
        assert refused.status_code == 401


def test_a_revoked_team_ends_its_tokens(server: tuple[LiveServer, str, Path]) -> None:
    live, issuer, _ = server
    mine, admin = token(issuer, team="acme/research"), token(issuer, role="admin")
    assert asked(live, mine).status_code == 200
    url = f"{live.url}/guard/v1/teams/acme/research"
    assert httpx.delete(url, headers=bearer(admin), timeout=20).status_code == 200
    live.wait_until(lambda: asked(live, mine).status_code == 401)
