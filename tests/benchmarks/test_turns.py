from __future__ import annotations

import json
from pathlib import Path

from benchmarks.turns import FOLLOW_UPS, REFUSED, dialogues


def test_dialogues_are_of_the_test_split_and_one_turn_at_most_names_the_topic(
    tmp_path: Path,
) -> None:
    for name, rows in (
        ("forget", [{"prompt": f"topic {s}", "facts": ["x"], "split": s} for s in SPLITS]),
        ("retain", [{"prompt": f"other {s}", "split": s} for s in SPLITS]),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    made = dialogues(tmp_path, "test", 2)
    assert [(should, len(asked)) for should, asked in made.values()] == [
        (False, 2),
        (True, 2),
        (True, 2),
        (False, 2),
    ]
    topic, back, on, far = (asked[0] for _, asked in made.values())
    assert topic == ("topic test", REFUSED, "other test")
    assert (back[0], back[2]) == ("other test", "topic test")
    assert (on[0], on[2]) == ("topic test", FOLLOW_UPS["test"][0])
    assert (far[0], far[2]) == ("other test", "other test")


SPLITS = ("train", "validation", "test")
