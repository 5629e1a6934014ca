"""The recording that checkouts are compared with, `expected.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).with_name("expected.json")


def read_recording(path: Path = EXPECTED) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(path.read_text())
    return recording


def write_recording(recording: dict[str, Any], path: Path = EXPECTED) -> None:
    """Write JSON with one line for each artifact and each outcome, so that diffs name them."""
    parts = [f" {json.dumps(key)}: {_lines(value)}" for key, value in recording.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _lines(table: dict[str, Any]) -> str:
    compact = [
        f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
    ]
    return "{\n" + ",\n".join(compact) + "\n }"
