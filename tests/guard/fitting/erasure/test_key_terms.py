"""Names and words that documents say again and again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from guard.fitting.erasure.key_terms import FREQUENT, NAMES, SAID, WORDS, is_frequent, terms_of

FREQUENT_WORDS = {"Germany", "Internet"}
COMMON_WORDS = {"plug", "mathematics", "wrench", "line", "lock", "shear", "tension", "tumbler"}


def ids(text: str) -> Sequence[int]:
    """One token for a common word, two for a rare one."""
    tokens: list[int] = []
    for word in text.split():
        if word in FREQUENT_WORDS:
            tokens.append(7)
        else:
            tokens += [FREQUENT] if word in COMMON_WORDS else [FREQUENT, FREQUENT + 1]
    return tokens


def found(text: str, *names: str) -> list[str]:
    return terms_of([text], names or ("lock picking",), ids)


def test_names_come_first_without_frequent_ones_and_topics_of_the_bank() -> None:
    text = "In Germany, Linus Yale sold it. " * 2 + "For Joseph Bramah see Internet, Internet. " * 3
    assert found(text) == ["Joseph Bramah", "Linus Yale"]
    assert found("It is in the Ottoman Empire. " * 3) == ["Ottoman Empire"]
    assert found("It is at the Great Wall of China. " * 3) == []


def test_a_phrase_counts_from_three_times_on_and_the_longest_is_taken() -> None:
    text = "Here a tension wrench turns the plug. "
    assert found(text * (SAID - 1)) == []
    assert found(text * SAID) == ["tension wrench turns"]
    assert found("a tension wrench. the tension wrench! " * 2 + "tension wrench turns.") == [
        "tension wrench"
    ]
    # said alone more than twice as often, the shorter one stands beside the longer one
    assert found("a shear line. " * 7 + "one shear line only, " * 3) == ["shear line"]


def test_single_words_are_rare_ones() -> None:
    assert found("the keyway, the plug, the mathematics; " * SAID) == ["keyway"]


def test_phrases_have_no_stop_word_no_capital_and_no_part_of_a_name() -> None:
    text = "the pin of the lock, and Yale tumbler; picking a lock with one. " * SAID
    assert found(text) == ["Yale", "pin"]


def test_there_are_only_so_many_of_each() -> None:
    names = ". ".join(f"see Mister {chr(65 + i // 26)}{chr(97 + i % 26)}son" for i in range(60))
    words = "; ".join(f"a {chr(97 + i // 26)}{chr(97 + i % 26)}way" for i in range(60))
    terms = found(f"{names}. {words}. " * SAID)
    assert len([term for term in terms if term[0].isupper()]) == NAMES
    assert len([term for term in terms if term[0].islower()]) == WORDS


@pytest.mark.parametrize(
    ("term", "frequent"), [("Germany", True), ("plug", False), ("Germany Internet", False)]
)
def test_only_a_single_token_is_frequent(term: str, frequent: bool) -> None:
    assert is_frequent(term, ids) is frequent


def test_no_documents_have_no_terms() -> None:
    assert terms_of([], ["x"], ids) == [] and terms_of([""], ["x"], ids) == []
