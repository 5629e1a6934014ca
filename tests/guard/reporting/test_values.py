"""Settings and figures as rows."""

from __future__ import annotations

from guard.reporting.values import rows


def test_rows_are_short() -> None:
    values = {
        "least_share": 0.98765432,
        "streams": ["text"],
        "groups": {str(i): [f"layer {i}", f"other {i}"] for i in range(7)},
        "shares": {f"layer {i}": 1.0 for i in range(13)},
        "dropped": {"biases": ["a", "b"]},
    }
    assert rows(values) == [
        ("least share", "0.9877"),
        ("streams", "['text']"),
        ("groups", "14 entries"),
        ("shares", "13 entries"),
        ("dropped", "{'biases': ['a', 'b']}"),
    ]
