"""Prompt files: read whole, refused with each fault's line; what counts as a leak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.data.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, in_split, read_rows
from guard.errors import DataError


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def faults(path: Path, kind: type = RetainPrompt) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, kind)
    message = caught.value.message
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def forget(**fields: Any) -> ForgetPrompt:
    return ForgetPrompt.model_validate({"prompt": "Who wrote it?"} | fields)


def test_rows_are_read_in_order_with_their_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "a", "facts": ["x"], "family": "f", "split": "test", "note": "ignored"},
        "",
        {"prompt": "b", "pattern": "x+", "answer": "xx", "kind": "open"},
    )
    one, two = read_rows(path, ForgetPrompt)
    assert (one.prompt, one.facts, one.family, one.split) == ("a", ("x",), "f", "test")
    assert (two.prompt, two.pattern, two.answer, two.split) == ("b", "x+", "xx", "train")
    assert in_split([one, two], "train") == [two]


def test_retain_prompts_know_near_misses() -> None:
    kinds = [RetainPrompt(prompt="p", kind=kind).near for kind in ("near", "far", "")]
    assert kinds == [True, False, False]


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "sound", "facts": ["x"]},
        "{broken",
        {"prompt": ""},
        "",
        [1, 2],
        {"prompt": "p", "facts": ["x"], "split": "tset"},
        {"prompt": "p", "pattern": "("},
        {"prompt": "p"},
        {"facts": ["x"], "split": 3},
        {"prompt": "p", "facts": ["x", "  "]},
    )
    told = faults(path, ForgetPrompt).split("; ")
    starts = [
        "line 2: no JSON object",
        "line 3: prompt",
        "line 5: row",
        "line 6: split",
        "line 7: pattern: Value error, is no regular expression",
        "line 8: row: Value error, needs facts or a pattern",
        "line 9: prompt",
        "line 9: split",
        "line 10: facts.1",
    ]
    assert len(told) == len(starts)
    for text, begins in zip(told, starts, strict=True):
        assert text.startswith(begins)


def test_distractors_are_wrong_answers_beside_a_fact(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "p", "facts": ["Oslo"], "distractors": ["Rome", "Oslofjord"]},
        {"prompt": "p", "pattern": "Oslo", "distractors": ["Rome"]},
        {"prompt": "p", "facts": ["Oslo"], "distractors": ["in oslo"]},
    )
    assert faults(path, ForgetPrompt).split("; ") == [
        "line 2: row: Value error, has distractors and no fact that they are to be compared with",
        "line 3: row: Value error, the distractor 'in oslo' holds a fact",
    ]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    told = faults(write(tmp_path, *["{"] * 14))
    assert told.count("line ") >= 10 and told.endswith("(and 4 more)")


def test_a_family_lies_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "family": f, "split": s}
        for i, (f, s) in enumerate(
            [
                ("a", "train"),
                ("b", "test"),
                ("a", "train"),
                ("a", "test"),
                ("", "test"),
                ("", "train"),
            ]
        )
    ]
    told = faults(write(tmp_path, *rows))
    assert told.startswith("line 4: family 'a' lies in test, and in train (line 1): a paraphrase")
    assert told.count("line") == 2
    assert len(read_rows(write(tmp_path, *rows[:3], *rows[4:]), RetainPrompt)) == 5


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_a_row(tmp_path: Path, separator: str) -> None:
    prompt = f"one{separator}two"
    text = json.dumps({"prompt": prompt}, ensure_ascii=False)
    assert read_rows(write(tmp_path, text, text), RetainPrompt)[1].prompt == prompt


def test_files_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [row.prompt for row in read_rows(path, RetainPrompt)] == ["a", "b"]


@pytest.mark.parametrize("content", ["", "\n\n", "  \n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    assert faults(write(tmp_path, content)) == "holds no prompts"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert faults(tmp_path / "gone.jsonl") == "cannot be read: No such file or directory"
    assert faults(tmp_path) == "cannot be read: Is a directory"
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    assert faults(path).startswith("is not UTF-8 text")


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.data.prompts.MAX_BYTES", 2**20)
    path = write(tmp_path, {"prompt": "p" * 100})
    assert len(read_rows(path, RetainPrompt)) == 1
    path.write_bytes(b" " * (2**20 + 1))
    assert faults(path) == "is larger than 1 MiB"


def test_a_deeply_nested_line_is_a_fault_like_others(tmp_path: Path) -> None:
    told = faults(write(tmp_path, {"prompt": "a"}, "[" * 200_000))
    assert told.startswith("line 2: no JSON object")


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_is_rows_or_a_data_error(tmp_path_factory: Any, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError):
        read_rows(path, RetainPrompt)


@pytest.mark.parametrize(
    ("fact", "answer", "leaks"),
    [
        ("Rowling", "It was J. K. Rowling.", True),
        ("Rowling", "it was ROWLING", True),
        ("rowling", "Rowling's book", True),
        ("Rowling", "Bowling and Trowlings", False),
        ("Rowling", "Rowlings", False),
        ("7", "7 books", True),
        ("7", "17 books or 1997", False),
        ("C++", "It is C++, of course", True),
        ("C++", "C+ is a grade", False),
        ("a.b", "axb", False),
        ("King's Cross", "from king's cross station", True),
        ("Élodie", "said ÉLODIE.", True),
        ("Rowling", "", False),
    ],
)
def test_facts_count_as_whole_words_in_any_case(fact: str, answer: str, leaks: bool) -> None:
    assert forget(facts=[fact]).leaks(answer) is leaks


@pytest.mark.parametrize(
    ("pattern", "answer", "leaks"),
    [
        (r"\d+ ?mg\b", "take 400 MG now", True),
        (r"\d+ ?mg\b", "take 400 mgs now", False),
        ("one|two", "TWO", True),
        (r"(\w)\1", "book", True),
        (r"(?x) a  b  # verbose", "xaby", True),
        ("(?-i:Rowling)", "rowling", False),
    ],
)
@pytest.mark.parametrize("facts", [[], ["elsewhere"]])
def test_patterns_count_wherever_they_match(
    pattern: str, answer: str, leaks: bool, facts: list[str]
) -> None:
    assert forget(pattern=pattern, facts=facts).leaks(answer) is leaks


def test_facts_and_pattern_count_both() -> None:
    row = forget(facts=["alpha", "beta"], pattern="gam+a")
    assert [row.leaks(word) for word in ("Alpha", "beta!", "gammma", "delta")] == [True] * 3 + [
        False
    ]


@pytest.mark.parametrize("missing", ["erasure", "recall"])
def test_pairs_need_both_answers(tmp_path: Path, missing: str) -> None:
    row = {"prompt": "p", "erasure": "I cannot say.", "recall": "Rowling."}
    assert read_rows(write(tmp_path, row), PairedAnswers)[0].recall == "Rowling."
    del row[missing]
    assert faults(write(tmp_path, row), PairedAnswers) == f"line 1: {missing}: is missing: add it"
