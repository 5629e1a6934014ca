"""Chained logs for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guard.audit import AuditLog
from guard.audit.signing import Signer, new_key
from guard.audit.verify import Report, verify
from guard.verdict import Verdict


def key_in(folder: Path) -> Path:
    path = folder / "audit.pem"
    if not path.exists():
        new_key(path)
    return path


def opened(folder: Path, name: str = "audit.jsonl") -> AuditLog:
    return AuditLog(folder / name, key=key_in(folder))


def verdict(request_id: str = "r1", outcome: Any = "pass") -> Verdict:
    return Verdict(request_id, "tiny", "strict", outcome, (), 12.5)


def write(folder: Path, count: int, tenant: str = "acme", name: str = "audit.jsonl") -> Path:
    """One run of a server: `count` requests between the lines of its start and its end."""
    with opened(folder, name) as log:
        for number in range(count):
            log.append(verdict(f"{tenant}-{number}"), tenant=tenant)
    return folder / name


def checked(*paths: Path) -> Report:
    return verify(paths, Signer(paths[0].parent / "audit.pem").public)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
