from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.errors import ReplayUnavailable
from guard.policies.recorded import last_recorded


def line(number: int, policy: str = "p", **more: Any) -> str:
    entry = {
        "time": "2026-11-30T16:00:00.000Z",
        "tenant": "acme",
        "request_id": f"r{number}",
        "model": "m",
        "policy": policy,
        "outcome": "pass",
        "guards": [{"guard": "g", "score": number / 10, "fired": False, "action": "none"}],
    }
    return json.dumps(entry | more, separators=(",", ":"))


def test_the_newest_are_read_first(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = [line(number, "q" if number % 2 else "p") for number in range(5000)]
    path.write_text("\n".join([*lines, '{"event": "policies", "policy": "p"}', '{"half": ']))
    assert [each.request_id for each in last_recorded(path, 3)] == ["r4999", "r4998", "r4997"]
    found = last_recorded(path, 3000, "p")
    assert len(found) == 2500 and found[0].request_id == "r4998"
    assert found[-1].request_id == "r0" and found[-1].guards["g"]["score"] == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "[]",
        '{"policy": "p"}',
        '{"policy": "p", "outcome": "pass", "guards": [3]}',
        "\0",
    ],
)
def test_what_is_no_line_of_a_request_is_passed_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(f"{line(1)}\n{text}\n")
    assert [each.request_id for each in last_recorded(path, 10)] == ["r1"]


def test_what_was_erased_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(line(1, tenant=None, request_id=None) + "\n")
    (found,) = last_recorded(path, 10)
    assert (found.tenant, found.request_id) == ("", "")


def test_a_log_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReplayUnavailable, match="No such file"):
        last_recorded(tmp_path / "audit.jsonl", 10)
