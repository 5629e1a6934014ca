"""Views map back to the raw text; ordinary texts have one reading."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.disguises.hostile import SPELLINGS
from classifiers.text.disguises.folding import fold, readable
from classifiers.text.disguises.views import STEPS, layers, readings, views
from tests.classifiers.text.disguised_texts import DISGUISES
from tests.processor_time import grows_linearly, takes_less

PROSE = (
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "I have 2 cats, a dog, and 10,000 bees; the 2nd hive (of 3) is mine!",
    "Mr. J. R. R. Tolkien wrote it in the U.K. at 5 p.m., i.e. after tea, a.k.a. supper.",
    "Add 2-3 tbsp. of sugar - or honey - to 1/2 cup of milk & stir well...",
    "Can you fix my Python 3.11 script? It uses utf8, mp3 files and HTTP2 on x86.",
    "See https://example.org/how-to-bake-bread?page=2&lang=en#part-3 for more.",
    "Is 'x = a + b * c' the same as y? I think A, B and C are.",
    "“Well,” she said — smiling — “it’s a naïve café idea, isn’t it?”",
    "Order 4711 of 2024-10-12 costs $25.50 (20% off), phone ext. 12.",
    "Tell him that you are not able to do so, but we can if it is up to us.",
)


@given(
    st.lists(st.sampled_from(PROSE), min_size=1, max_size=10), st.sampled_from([" ", "\n", "\n\n"])
)
def test_ordinary_prose_has_one_reading(sentences: list[str], separator: str) -> None:
    text = separator.join(sentences)
    # the first letters of lines may happen to look like English
    longer = [reading for reading in readings(text) if len(reading) > len(text) / 2]
    assert longer == [readable(text)]


ENGLISH = "the man of two towns may well have seen no one at all"


@given(st.lists(st.sampled_from(ENGLISH.split())))
def test_any_order_of_english_words_has_one_reading(words: list[str]) -> None:
    assert readings(" ".join(words)) == [" ".join(words)]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_some_reading_shows_the_hidden_word(disguise: str) -> None:
    text = f"Please tell me: {DISGUISES[disguise]('explosives')} ok?"
    assert any("explosives" in reading.lower() for reading in readings(text))


@pytest.mark.parametrize("disguise", DISGUISES)
def test_some_view_shows_the_hidden_word_and_its_place(disguise: str) -> None:
    hidden = DISGUISES[disguise]("explosives")
    text = f"Please tell me: {hidden} ok?"
    start = text.index(hidden)
    showing = [view for view in views(text) if "explosives" in view.text]
    assert showing
    for view in showing:
        place = view.text.index("explosives")
        first, last = view.span(place, place + len("explosives"))
        assert start <= first < last <= start + len(hidden)
        assert view.steps <= STEPS


def test_the_first_view_is_the_folded_text_and_the_others_differ() -> None:
    text = "Plain ТЕХТ"
    assert [(view.name, view.text) for view in views(text)] == [("plain", fold(text).text)]


def test_the_name_of_a_view_lists_the_undone_disguises() -> None:
    text = base64.b64encode(b"how to build a b-0-m-b").decode()
    assert "base64+spaced+leet" in {view.name for view in views(text)}


def test_encoding_is_undone_three_times_and_no_more() -> None:
    text = "say it aloud"
    for _ in range(4):
        text = base64.b64encode(text.encode()).decode()
    *_, last = layers(text)
    assert last.name == "base64+base64+base64"
    assert last.text == base64.b64encode(b"say it aloud").decode()


def test_only_wanted_layers_are_made() -> None:
    text = "%62%6f%6d%62 " + base64.b64encode(b"how to build").decode()
    assert [layer.name for layer in layers(text, frozenset({"plain", "url"}))] == ["plain", "url"]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([hide("how to be") for hide in DISGUISES.values()]),
            st.text(max_size=6),
            st.sampled_from([" ", "\n", "a b c", "gur naq"]),
        )
    ).map("".join),
    st.data(),
)
@settings(deadline=None)
def test_spans_of_all_views_are_in_range(text: str, data: st.DataObject) -> None:
    for view in views(text):
        view.text.encode()
        if view.text:
            start = data.draw(st.integers(0, len(view.text) - 1))
            end = data.draw(st.integers(start + 1, len(view.text)))
            first, last = view.span(start, end)
            assert 0 <= first < last <= len(text)
            narrower = view.span(start, max(start + 1, end - 1))
            assert first <= narrower[0] and narrower[1] <= last


SIZE = 200_000


@pytest.mark.parametrize("unit", SPELLINGS)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    def read(size: int) -> None:
        text = unit * (size // len(unit))
        text_views = views(text)
        for view in text_views:
            middle = len(view.text) // 2
            view.span(middle, min(middle + 1, len(view.text)))
        readings(text)
        assert sum(len(view.text) for view in text_views) <= 12 * len(text)

    assert takes_less(lambda: read(SIZE), 5.0)
    assert grows_linearly(read, SIZE, constant=0.25, factor=40)


def test_escapes_of_ordinary_text_make_no_further_reading() -> None:
    assert len(readings(r"the table has a \\ b \\ c, and C:\\Users too, then \n a line")) == 1
