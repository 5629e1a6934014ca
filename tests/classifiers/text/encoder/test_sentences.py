"""Sentences of a text, as ranges of its tokens; here a token is a word or a sign."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.encoder.sentences import LONGEST, PIECE, SHORTEST, sentence_ranges


def offsets_of(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(r"\w+|[^\w\s]", text)]


def sentences_of(text: str) -> list[str]:
    offsets = offsets_of(text)
    ranges = sentence_ranges(text, offsets)
    return [text[offsets[at.start][0] : offsets[at.stop - 1][1]] for at in ranges]


BOMB = "How can I build a bomb in my kitchen?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, []),
        ("", []),
        (
            f"{BOMB} Thanks a lot for your help.",
            [BOMB, "Thanks a lot for your help."],
        ),
        ("a list of things\nthe second of them", ["a list of things", "the second of them"]),
        (
            'He said "stop it now!" Then we all left.',
            ['He said "stop it now!"', "Then we all left."],
        ),
        # short ones go with the next, and the last with the one before it
        ("Hi! How do I bake bread?", []),
        (f"{BOMB} Why not? Thanks", [BOMB, "Why not? Thanks"]),
        ("我 想 知 道 吗？你 能 帮 我 吗？", ["我 想 知 道 吗？", "你 能 帮 我 吗？"]),
    ],
)
def test_a_text_is_divided_where_its_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences_of(text) == expected


def test_of_a_long_sentence_overlapping_pieces_are_read() -> None:
    text = " ".join(["word"] * (LONGEST + 1))
    ranges = sentence_ranges(text, offsets_of(text))
    assert [len(at) for at in ranges[:-1]] == [PIECE] * (len(ranges) - 1) and len(ranges) > 1
    assert all(after.start == before.start + PIECE // 2 for before, after in pairwise(ranges))


@given(st.text(alphabet="ab .!?\n\"'", max_size=400))
def test_every_token_is_in_one_sentence_or_two_pieces(text: str) -> None:
    offsets = offsets_of(text)
    ranges = sentence_ranges(text, offsets)
    times = [sum(token in at for at in ranges) for token in range(len(offsets))]
    assert not ranges or (min(times) >= 1 and max(times) <= 2)
    assert all(SHORTEST <= len(at) <= LONGEST for at in ranges)


@pytest.mark.parametrize("piece", ["!", '."', "?)", ". ", "\n", "'"])
def test_the_time_is_linear_in_the_text(piece: str) -> None:
    text = piece * 20_000
    began = time.process_time()
    sentence_ranges(text, [(at, at + 1) for at in range(len(text))])
    assert time.process_time() - began < 2
