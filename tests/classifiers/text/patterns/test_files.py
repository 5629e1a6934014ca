"""A list with an error is refused with one line that says what to change."""

from __future__ import annotations

import pytest

from classifiers.text.disguises.views import STEPS
from classifiers.text.patterns.files import parse

REGEX = '[[regex]]\nlabel = "X"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("words = 1", "words: Input should be a valid tuple"),
        ("[[words]\n", "not TOML"),
        ('[[words]]\nlabel = "X"\nwords = []', "words 1 words: .* at least 1 item"),
        ('[[words]]\nlabel = "X"\nwords = ["ok", "\u200b"]', "words 1 words 2: .*take it out"),
        ('[[words]]\nlabel = "a b"\nwords = ["ok"]', "words 1 label: .*A-Z"),
        ('[[words]]\nlabel = "X"\nwords = ["ok"]\nwhale = true', "words 1 whale: Extra"),
        ('[[words]]\nlabel = "X"\nwords = ["ok"]\nviews = []', "words 1 views"),
        (
            '[[words]]\nlabel = "X"\nwords = ["ok"]\nviews = ["rot26"]',
            "no view 'rot26': choose from",
        ),
        (
            '[[words]]\nlabel = "X"\nwords = ["ok"]\ntypos = true\nwhole = false',
            "out whole = false",
        ),
        (
            '[[words]]\nlabel = "X"\ntypos = true\nwords = [' + 20_001 * '"ok",' + "]",
            "20001 words have typos = true, at most 20000 may",
        ),
        ('views = ["x"]', "no view 'x'"),
        (REGEX + "pattern = '(a'", r"regex 1: not a regular expression of RE2's: missing \)"),
        (REGEX + "pattern = 'a(?=b)'", "not a regular expression of RE2's"),
        (
            REGEX + "pattern = 'ab+'",
            r"any number of characters, more than 4096: bound it, e.g. \{1,64\}",
        ),
        (REGEX + "pattern = '(?:.{1000}){5}'", "not a regular expression"),
        (REGEX + f"pattern = '{'.{1000}' * 5}'", "match 5000 characters"),
        (REGEX + "pattern = 'a?'", "matches the empty text"),
        (REGEX + "pattern = 'a'\ncheck = 'md5'", "no check 'md5': choose from"),
        (REGEX + "pattern = 'a'\ncheck = 'entropy'", "bits goes with"),
        (REGEX + "pattern = 'a'\ncheck = 'luhn'\nbits = 3.0", "bits goes with"),
    ],
)
def test_errors_name_the_place_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_views_of_the_file_are_those_of_entries_that_name_none() -> None:
    entry = '[[words]]\nlabel = "X"\nwords = ["x"]\n'
    patterns = parse('views = ["plain"]\n' + entry + entry + 'views = ["leet"]')
    assert [words.views for words in patterns.words] == [{"plain"}, {"leet"}]
    assert parse(entry).words[0].views == STEPS
