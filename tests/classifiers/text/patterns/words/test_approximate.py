"""Names with typing errors are found; other words, other numbers and other names are not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.text.patterns.matching import PatternSet
from classifiers.text.patterns.words.approximate import ApproximateWords
from classifiers.text.patterns.words.ordinary import ordinary_words
from tests.processor_time import grows_linearly

NAMES = [
    "frankenstein",
    "the lord of the rings",
    "mozart",
    "world war ii",
    "apollo 11",
    "joan of arc",
]
WORDS = ApproximateWords([*NAMES, "chess", "sherlock holmes"])
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FILLING = st.lists(st.sampled_from(["the", "book", "xylq", "of", "and", "11", "a"]), max_size=4)


def _distance(one: str, other: str) -> int:
    """The optimal string alignment distance, from its definition."""
    rows = [[*range(len(other) + 1)]]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


@st.composite
def _misspelt(draw: st.DrawFn, names: list[str]) -> tuple[int, str]:
    """The number of a name, and the name with as many typing errors as it may have."""
    number = draw(st.integers(0, len(names) - 1))
    text = names[number]
    for _ in range(1 if sum(map(str.isalpha, text)) < 10 else 2):
        place = draw(st.integers(0, len(text) - 1))
        if text[place] in LETTERS:
            text = draw(st.sampled_from(_EDITS))(text, place, draw(st.sampled_from(LETTERS)))
    return number, text


_EDITS: list[Callable[[str, int, str], str]] = [
    lambda text, place, letter: text[:place] + text[place + 1 :],
    lambda text, place, letter: text[:place] + letter + text[place:],
    lambda text, place, letter: text[:place] + letter + text[place + 1 :],
    lambda text, place, letter: text[:place] + text[place : place + 2][::-1] + text[place + 2 :],
]


def _may_be(text: str, name: str) -> bool:
    """Whether `text` is `name` with typing errors, by the definition."""
    changed = [word for word in text.split() if word not in name.split()]
    edits = 1 if sum(map(str.isalpha, name)) < 10 else 2
    return (
        bool(changed)
        and _distance(text.replace(" ", ""), name.replace(" ", "")) <= edits
        and len(text.split()) <= len(name.split())
        and all(
            len(word) > 1
            and word.isalpha()
            and word not in ordinary_words()
            and not set(word) <= set("ivxlcdm")
            for word in changed
        )
    )


@given(_misspelt(NAMES), FILLING, FILLING)
@settings(max_examples=200, deadline=None)
def test_a_misspelt_name_is_found_among_other_words(
    misspelt: tuple[int, str], before: list[str], after: list[str]
) -> None:
    number, text = misspelt
    whole = " ".join([*before, text, *after])
    place = whole.index(text, len(" ".join(before)))
    found = [each for each in WORDS.find(whole) if each.name == number]
    is_found = any((each.start, each.end) == (place, place + len(text)) for each in found)
    assert is_found == _may_be(text, NAMES[number])


@given(_misspelt(NAMES), FILLING, FILLING, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_what_may_become_a_name_is_under_way(
    misspelt: tuple[int, str], before: list[str], after: list[str], share: float
) -> None:
    whole = " ".join([*before, misspelt[1], *after])
    prefix = whole[: round(share * len(whole))]
    start = WORDS.longest_suffix(prefix).start
    settled = [each for each in WORDS.find(whole) if each.start < start]
    assert settled == [each for each in WORDS.find(prefix) if each.start < start]


@pytest.mark.parametrize(
    "text",
    [
        "who wrote frankenstien",
        "the lordof the rings",
        "the lord of teh rings",
        "mozzart",
        "wrold war ii",
        "apolo 11",
        "sherlok-holmse",
        "sherlockholmes",
    ],
)
def test_typing_errors(text: str) -> None:
    assert [*WORDS.find(text)]


@pytest.mark.parametrize(
    "text",
    [
        "frankenstein",  # as it is written: the exact list finds it
        "the lord of the kings",
        "world war iii",
        "world war one",
        "apolo 12",
        "john of arc",
        "ches",  # too short
        "frankestinn the",  # three errors
        "sherlock homes",
        "mo zart",
        "mozart and joan of arc",
    ],
)
def test_no_typing_errors(text: str) -> None:
    assert not [*WORDS.find(text)]


def test_a_list_finds_them_through_disguises_and_cuts_them_out() -> None:
    listed = '[[words]]\nlabel = "BOOK"\nwords = ["Frankenstein"]\n'
    patterns = PatternSet.from_toml(listed + "typos = true\n")
    for text in ("Who wrote FRANKENSTIEN?", "Who wrote fr4nk3nstien?", "Who wrote frαnkenstien?"):
        (match,) = patterns.find(text)
        assert (match.start, match.end, match.label) == (10, 22, "BOOK")
        assert not PatternSet.from_toml(listed).find(text)
    assert not PatternSet.from_toml(f'{listed}typos = true\nviews = ["plain"]').find("fr4nkenstien")


def test_joined_lists_find_only_the_misspelt_words_of_those_that_ask_for_it() -> None:
    lists = [
        '[[words]]\nlabel = "ONE"\nwords = ["Frankenstein"]\ntypos = true\n',
        '[[words]]\nlabel = "OTHER"\nwords = ["Beethoven"]\n',
    ]
    joined = PatternSet.joined([PatternSet.from_toml(text) for text in lists])
    found = joined.find("frankenstien, beetoven, Beethoven, Frankenstein")
    assert [match.label for match in found] == ["ONE", "OTHER", "ONE"]


def test_long_phrases_and_short_words_are_found_as_they_are_written_alone() -> None:
    assert not ApproximateWords(["frank " * 21, "chess"])
    assert ApproximateWords(["frank " * 20])


def test_phrases_alone_are_found_too() -> None:
    patterns = PatternSet.from_toml(
        '[[words]]\nlabel = "N"\nviews = ["plain"]\nwords = ["Harry Potter"]\ntypos = true\n'
    )
    assert [match.start for match in patterns.find("about hary poter")] == [6]


def test_time_is_linear_in_a_text_of_no_dictionary() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=8)) for _ in range(8000)]
    patterns = ApproximateWords(["".join(rng.choices(LETTERS, k=9)) for _ in range(300)])
    assert grows_linearly(
        lambda size: [*patterns.find(" ".join(words[:size]))], 8000, constant=0.2, factor=20
    )
