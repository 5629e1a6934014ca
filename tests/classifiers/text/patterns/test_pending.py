"""What is found before the open end of a text stays as it is, whatever follows."""

from __future__ import annotations

import base64
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.text.patterns.matching import PatternSet, shipped
from classifiers.text.patterns.streams import OpenEnd
from classifiers.text.patterns.words.partial import PartialWords
from tests.classifiers.text.disguised_texts import DISGUISES

LISTS = PatternSet.joined([shipped("personal-data"), shipped("secrets")])
OWN = PatternSet.from_toml(
    """
[[words]]
label = "WEAPON"
words = ["explosives", "pistol", "to", "say it", "a big red house", "self-made bomb now"]

[[words]]
label = "NAME"
words = ["frankenstein", "the lord of the rings"]
typos = true

[[words]]
label = "PART"
words = ["cyan", "ab"]
whole = false

[[regex]]
label = "CODE"
pattern = '(?:^|[^0-9])(?P<value>[0-9]{3})(?:[^0-9]|$)'

[[regex]]
label = "AFTER"
pattern = 'a.{0,5}(?P<value>b{1,5}c?)(?:d|$)|zz'

[[regex]]
label = "BORDERS"
pattern = '\\\\bcat(?:s|alog(?:ue)?)?\\\\b'

[[regex]]
label = "RAW"
pattern = '(?i)foo(?:\\\\s{1,3}bar){1,3}'
raw = true
"""
)
VALUES = [
    "joe.bloggs@example.com",
    "joe [at] example [dot] com",
    "4111 1111 1111 1111",
    "3782-822463-10005",
    "078-05-1120",
    "+44 20 7946 0018",
    "(212) 555-0123",
    "GB82 WEST 1234 5698 7654 32",
    "AB 12 34 56 C",
    "81.2.69.142",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "born on 12 March 1970",
    "ghp_" + "a1B2c3" * 6,
    "AKIAABCDEFGH23456723",
    "sk-ant-api03-" + "a1B2c3d4" * 4,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ." + "a1B2c3d4" * 4,
    "password = hunter2secret",
    "api_key: 'a1B2c3d4e5f6'",
    "postgres://joe:s3cr3t@db.example/x",
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    f"-----BEGIN RSA PRIVATE KEY-----\n{'A1b/' * 16}\nc3+==\n-----END RSA PRIVATE KEY-----",
    *(
        "pistol",
        "a big  red house",
        "self-made_bomb-now",
        "cyan",
        "frankenstien",
        "the lordof teh rings",
        "123",
        "catalogue",
        "foo bar bar",
        "zz",
        "aXbb",
        "x y",
    ),
]
WORDS = [
    "the",
    "of",
    "and",
    "how",
    "would",
    "make",
    "with",
    "this",
    "history",
    "über",
    "день",
    "日本",
]
SIGNS = [*",.;:-('%&#@/_½ﬁßİ’🙂", "42", "\\u", "e\u0301", "\u200b", "\ufe0f"]
LONG = ["internationalization", "/usr/local/lib/python3"]


@st.composite
def pieces(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        return draw(st.sampled_from([*WORDS, *SIGNS, *LONG]))
    value = draw(st.sampled_from(VALUES))
    if draw(st.booleans()):
        value = DISGUISES[draw(st.sampled_from(sorted(DISGUISES)))](value)
    start = draw(st.integers(0, len(value) // 4))
    return value[start : len(value) - draw(st.integers(0, len(value) // 4))]


JOINTS = st.sampled_from(["", " ", " ", "\n", "  ", ",", "."])
TEXTS = st.lists(st.tuples(pieces(), JOINTS), min_size=1, max_size=7).map(
    lambda parts: "".join(piece + joint for piece, joint in parts)
)


@pytest.mark.parametrize("patterns", [LISTS, OWN], ids=["lists", "own"])
@given(text=TEXTS, share=st.floats(0, 1), padded=st.booleans())
@settings(max_examples=400, deadline=None)
def test_matches_before_the_open_end_are_the_same_whatever_follows(
    patterns: PatternSet, text: str, share: float, padded: bool
) -> None:
    text = "the history of the bicycle " * 12 * padded + text
    prefix = text[: round(share * len(text))]
    start = patterns.open_from(prefix)
    assert 0 <= start <= len(prefix)
    assert _before(patterns, text, start) == _before(patterns, prefix, start)


@pytest.mark.parametrize("text", ["self-made bomb n", "self-made_bomb-n", "self-made bomb_n"])
def test_a_phrase_whose_word_has_a_joint_is_open_until_it_is_whole(text: str) -> None:
    assert OWN.find(f"{text}ow")[0].start == 0
    words = PartialWords(["self-made bomb now"], any_place=False, gap=8)
    assert words.longest_suffix(text).start == 0


def _before(patterns: PatternSet, text: str, start: int) -> list[tuple[int, int, str]]:
    """Matches that begin before `start`; of two views that show one, either may be named."""
    return [(m.start, m.end, m.label) for m in patterns.find(text) if m.start < start]


@given(text=TEXTS, share=st.floats(0, 1))
@settings(max_examples=400, deadline=None)
def test_a_window_with_its_context_shows_all_that_begins_in_it(text: str, share: float) -> None:
    text = "the history of the bicycle " * 20 + text
    start = LISTS.open_from(text[: round(share * len(text))])
    first = LISTS.context_from(text, start)
    assert 0 <= first <= start
    matches = LISTS.find(text)
    start = max([start, *(match.end for match in matches if match.start < start)])
    shown = {
        (match.start + first, match.end + first, match.label) for match in LISTS.find(text[first:])
    }
    for match in matches:
        assert match.start < start or (match.start, match.end, match.label) in shown


@pytest.mark.parametrize(
    ("text", "open_end"),
    [
        ("Hello there world", "there world"),  # the last word may decode to "@example.com"
        ("Hello there, world is ", "is "),
        ("Hello there world. ", "there world. "),
        ("write to joe@exam", "to joe@exam"),
        ("write to joe@example.com", "to joe@example.com"),
        ("write to joe@example.com, or ", "or "),
        ("call +44 20 79", "call +44 20 79"),
        ("the password = hunt", "password = hunt"),
        ('{"city": "Paris", "count": ', " "),
        ("see joe%40example.com now", "joe%40example.com now"),
        ("it’s a café for us", "for us"),
        ("🙂 done! ", " "),
        ("🙂 done!", " done!"),
    ],
)
def test_what_is_open(text: str, open_end: str) -> None:
    assert text[LISTS.open_from(text) :] == open_end


def test_a_private_key_is_open_from_its_first_line_to_its_last() -> None:
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{('A1b/' * 16 + chr(10)) * 20}"
    text = f"Here it is: {key}"
    assert LISTS.open_from(text) == text.index("-")
    closed = f"{text}-----END RSA PRIVATE KEY-----\n\nThat is all. "
    assert LISTS.open_from(closed) > closed.index("That")


def test_an_encoded_run_is_open_as_long_as_it_goes_on() -> None:
    run = base64.b64encode(b"nothing to be seen here, all of it is harmless" * 40).decode()
    text = f"It is: {run}"
    assert LISTS.open_from(text) <= text.index(run)
    assert LISTS.open_from(f"{text}.. That is all. ") > len(text)


def test_of_prose_the_last_words_are_open() -> None:
    prose = "The bicycle was invented by a baron who had lost his horse, so the story goes. " * 5
    held = [end - LISTS.open_from(prose[:end]) for end in range(100, len(prose))]
    assert sum(held) / len(held) < 10 and max(held) < 20


def test_with_words_that_are_respelled_the_last_stretch_is_open() -> None:
    prose = "It is the story of how to make a wooden machine with two wheels"
    # a cipher ends at a common word, and the letters before that may be letters apart
    assert prose[OWN.open_from(prose) :] == "ake a wooden machine with two wheels"
    assert OWN.open_from("bicycles everywhere") == 0


def test_pieces_of_a_long_match_take_linear_time() -> None:
    rng = random.Random(0)
    run = base64.b64encode(rng.randbytes(12_000)).decode()

    def seconds(length: int) -> float:
        end = OpenEnd(LISTS)
        began = time.thread_time()
        for stop in range(5, length, 5):
            end.update(run[:stop])
        return time.thread_time() - began

    seconds(1000)
    assert seconds(16_000) < 12 * seconds(4000) + 0.1


@given(TEXTS, st.lists(st.integers(1, 30), min_size=1))
@settings(max_examples=100, deadline=None)
def test_the_open_end_of_pieces_is_never_later_than_that_of_the_whole(
    text: str, lengths: list[int]
) -> None:
    end, place, last = OpenEnd(LISTS), 0, 0
    for length in lengths:
        place += length
        start = end.update(text[:place])
        assert last <= start <= LISTS.open_from(text[:place])
        last = start
