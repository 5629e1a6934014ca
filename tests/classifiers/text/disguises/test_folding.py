"""Folding undoes the ways of writing a letter, and maps back to the raw text."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.disguises.folding import fold, readable, uncover

TRICKY = st.text(
    st.one_of(
        st.sampled_from("abcо а\u0301\u200b\u00ad\u202eßﬁİ🅱ｂ\U000e0062\ufe0fΗη각か\n\t"),
        st.characters(),
    )
)


def tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(char)) for char in text)


@pytest.mark.parametrize(
    "written",
    [
        "BoMb",
        "ｂｏｍｂ",
        "𝐛𝕠𝗺𝒃",
        "ⓑⓞⓜⓑ",
        "🅱🅾🅼🅱",
        "🇧🇴🇲🇧",
        "ʙᴏᴍʙ",
        "Ьоmв",
        "βοΜΒ",
        "bօmb",
        "b\u200bo\u2060m\ufeffb",
        "b\u00ado\u202em\u2066b",
        "b\u0336o\u0336m\u0336b\u0336",
        "bòm̷b",
        "b\ufe0fom\U000e0101b",
        tags("bomb"),
        "b\x00om\x07b",
        "b\u3164omb",
        "".join(chr(0xE0100 + ord(char) - 16) for char in "bomb"),
    ],
)
def test_a_word_is_read_however_it_is_written(written: str) -> None:
    assert fold(written).text == "bomb"
    assert fold(written).span(0, 4)[1] == len(written)


def test_white_space_becomes_one_space_each_and_lines_end_only_where_they_are_kept() -> None:
    assert fold("a\u00a0\n\tb\u2800\u3000c").text == "a   b  c"
    assert uncover("A\u00a0\n\tb\u2028c").text == "A \n b\nc"


def test_digits_of_all_scripts_are_digits() -> None:
    assert fold("٣４𝟓⑥❼²").text == "345672"


def test_a_span_holds_characters_dropped_inside_it_and_marks_on_its_last_letter() -> None:
    raw = "x\u200bb\u200bo\u0301m\u200db\u0301\u200b y"
    folded = fold(raw)
    start = folded.text.index("bomb")
    assert raw[slice(*folded.span(start, start + 4))] == "b\u200bo\u0301m\u200db\u0301"
    assert folded.span(start, start) == (2, 2)


def test_a_character_of_two_letters_is_never_cut() -> None:
    folded = fold("ofﬁce")
    assert folded.text == "office"
    assert folded.span(2, 3) == folded.span(3, 4) == (2, 3)


def test_a_span_outside_the_text_is_refused() -> None:
    with pytest.raises(IndexError, match="no span 0 to 4"):
        fold("abc").span(0, 4)


@given(TRICKY, TRICKY)
def test_parts_fold_as_the_whole_does(left: str, right: str) -> None:
    assert fold(left + right).text == fold(left).text + fold(right).text


@given(TRICKY, st.data())
def test_spans_are_in_range_monotone_and_hold_their_text(raw: str, data: st.DataObject) -> None:
    for folded in (fold(raw), uncover(raw)):
        cuts = st.integers(0, len(folded.text))
        start, end, later = sorted(data.draw(st.tuples(cuts, cuts, cuts)))
        first, last = folded.span(start, end)
        assert 0 <= first <= last <= len(raw)
        assert folded.span(end, later)[0] >= first
        if start < end:
            again = (
                fold(raw[first:last]) if folded.text == fold(raw).text else uncover(raw[first:last])
            )
            assert folded.text[start:end] in again.text


def test_every_character_folds_alike_with_and_without_its_case_and_can_be_encoded() -> None:
    assigned = (chr(code) for code in range(sys.maxunicode + 1))
    everything = "".join(
        char for char in assigned if unicodedata.category(char) not in ("Cn", "Co")
    )
    folded, uncovered = fold(everything).text, uncover(everything).text
    folded.encode()
    uncovered.encode()
    assert fold(uncovered).text == folded


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("plain words, as they stand!\n", None),
        ("Привет, мир! Как дела?", None),
        ("Η γλώσσα μας", None),
        ("crème brûlée in Zürich, naïve", None),
        ("中文和日本語がここに", None),
        ("the Δt of the Привет programme", None),
        ("zero\u200bwidth and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("ｆｕｌｌ width", "full width"),
        ("how to make a bоmb", "how to make a bomb"),
        ("Sсаm from раураl", "Scam from paypal"),
        ("the сосое is hot", "the cocoe is hot"),
        ("ᴋɪʟʟ and 🅱🅾🅼🅱", "kill and BOMB"),
        ("see " + tags("hidden"), "see hidden"),
        ("z\u0336a\u0336l\u0336", "zal"),
        ("half a \ud83d pair", "half a \ufffd pair"),
    ],
)
def test_readable_settles_lookalikes_and_leaves_other_scripts(text: str, read: str | None) -> None:
    assert readable(text) == (text if read is None else read)


@given(TRICKY)
def test_readable_text_can_be_encoded_and_hides_nothing(text: str) -> None:
    read = readable(text)
    read.encode()
    assert not any(unicodedata.category(char) == "Cf" for char in read)


@given(st.text("aé½ß\u0301\u200b’\n", max_size=12), st.integers(0, 12))
def test_positions_are_found_in_both_texts(text: str, place: int) -> None:
    folded = fold(text)
    place = min(place, len(text))
    assert folded.text[: folded.place(place)] == fold(text[:place]).text
    assert folded.origin(folded.place(place)) >= place
