"""Patterns match through disguises, and cutting a match out removes all of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.disguises.hostile import LISTED
from classifiers.text.patterns.matching import Match, PatternSet, Shipped, shipped
from tests.classifiers.text.disguised_texts import DISGUISES, OF_LETTERS_ONLY
from tests.processor_time import takes_less

WORDS = PatternSet.from_toml(
    """
[[words]]
label = "WEAPON"
words = ["explosives", "nitroglycerin", "pistol"]

[[words]]
label = "PHRASE"
words = ["pipe bomb"]

[[words]]
label = "PART"
words = ["cyan"]
whole = false

[[regex]]
label = "CODE"
pattern = '(?:^|[^0-9])(?P<value>[0-9]{3})(?:[^0-9]|$)'
views = ["plain"]
"""
)
PLAINLY = PatternSet.from_toml(
    """
[[regex]]
label = "KEY"
pattern = 'sk-[a-z]{4}'
raw = true
views = ["plain", "base64", "hex", "url", "escape"]

[[regex]]
label = "NAME"
pattern = '(?:^|[^a-z])(?P<value>john doe)(?:[^a-z]|$)'
views = ["plain", "base64", "hex", "url", "escape"]
"""
)
NEIGHBOURS = "Say, why; (sunny) blue 42 ünd день\n"
AROUND = st.lists(st.sampled_from(NEIGHBOURS.split(" ")), max_size=5)
TOKEN = "ghp_" + "a1B2c3" * 6


def cut(text: str, matches: list[Match]) -> str:
    for match in reversed(matches):
        text = f"{text[: match.start]}[{match.label}]{text[match.end :]}"
    return text


@given(
    st.sampled_from(sorted(DISGUISES)),
    st.sampled_from(["explosives", "nitroglycerin", "pistol"]),
    AROUND,
    AROUND,
)
def test_a_word_is_found_and_cut_out_in_every_disguise(
    disguise: str, word: str, before: list[str], after: list[str]
) -> None:
    hidden = DISGUISES[disguise](word)
    text = " ".join([*before, f"({hidden})", *after])
    matches = [match for match in WORDS.find(text) if match.label == "WEAPON"]
    assert len(matches) == 1
    start = text.index(hidden)
    assert start <= matches[0].start < matches[0].end <= start + len(hidden)
    assert "WEAPON" not in {match.label for match in WORDS.find(cut(text, matches).lower())}


@pytest.mark.parametrize("disguise", sorted(DISGUISES.keys() - OF_LETTERS_ONLY))
@pytest.mark.parametrize(
    ("value", "label"),
    [("joe.bloggs@example.com", "EMAIL"), ("4111 1111 1111 1111", "CREDIT_CARD")]
    + [("078-05-1120", "US_SSN"), ("+44 20 7946 0018", "PHONE")],
)
def test_personal_data_is_found_and_cut_out(disguise: str, value: str, label: str) -> None:
    text = f"it is {DISGUISES[disguise](value)} thanks"
    matches = shipped("personal-data").find(text)
    assert [match.label for match in matches] == [label]
    assert shipped("personal-data").find(cut(text, matches)) == []


@pytest.mark.parametrize(
    ("secret", "label"),
    [
        (TOKEN, "GITHUB_TOKEN"),
        ("github_pat_" + "a1B2c3" * 6, "GITHUB_TOKEN"),
        ("glpat-" + "a1B2c3" * 4, "GITLAB_TOKEN"),
        ("AKIA" + "ABCDEFGH23456723", "AWS_ACCESS_KEY"),
        ("xoxb-" + "123456789012-" * 2 + "a1B2c3" * 4, "SLACK_TOKEN"),
        ("sk_live_" + "a1B2c3" * 4, "STRIPE_KEY"),
        ("sk-ant-api03-" + "a1B2c3d4" * 4, "LLM_API_KEY"),
        ("sk-proj-" + "a1B2c3d4" * 4, "LLM_API_KEY"),
        ("AIza" + "a1B2c3d" * 5, "GOOGLE_API_KEY"),
        ("npm_" + "a1B2c3" * 6, "PACKAGE_TOKEN"),
        ("SG." + "a1B2c3d4e5f" * 2 + "." + "a" * 43, "MAIL_API_KEY"),
        (".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTYifQ", "a1B2c3d4" * 4]), "JWT"),
    ],
)
def test_keys_are_found_in_plain_text_and_encoded(secret: str, label: str) -> None:
    plain = f"use {secret}.", f"KEY='{secret}'", "use " + "\u200b".join(secret)
    wrapped = f"{secret} is it", f"it is {secret}"
    encoded = (f"use {base64.b64encode(words.encode()).decode()} now" for words in wrapped)
    for text in (*plain, *encoded):
        matches = shipped("secrets").find(text)
        assert [match.label for match in matches] == [label], text
        assert shipped("secrets").find(cut(text, matches)) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("password = hunter2secret done", "password = [PASSWORD] done"),
        ('{"api_key": "a1B2c3d4e5f6"}', '{"api_key": "[PASSWORD]"}'),
        ("postgres://joe:s3cr3t@db.example/x", "postgres://joe:[PASSWORD]@db.example/x"),
        (
            "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
            "aws_secret_access_key=[AWS_SECRET_KEY]\n",
        ),
    ],
)
def test_of_an_assignment_the_value_is_cut_out(text: str, kept: str) -> None:
    assert cut(text, shipped("secrets").find(text)) == kept


@pytest.mark.parametrize("lines", [0, 1, 26, 49])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\\n"])
def test_a_private_key_is_cut_out_with_its_body(lines: int, ends: str) -> None:
    body = ("A1b/" * 16 + ends) * lines
    key = f"-----BEGIN RSA PRIVATE KEY-----{ends}{body}c3+=={ends}-----END RSA PRIVATE KEY-----"
    text = f"Here: {key}\nThen restart."
    assert cut(text, shipped("secrets").find(text)) == "Here: [PRIVATE_KEY]\nThen restart."


BENIGN = """
Version 1.2.3.4 of 2024-10-12T10:11:12Z replaces v10.0.19041.1 and 3.11.7-rc1.
Order ORDER-234-567-8901, ticket #123-45-6789, invoice 2024-000123-45, part no. 4111-22-333.
commit 40a380a1b2c3d4e5f60718293a4b5c6d7e8f9012, blob sha256:9f86d081884c7d659a2feaa0c55ad015
a3bf4f1b2b0b822cd15d6c15b0f00a08 (64 digits), id 6ba7b810-9dad-11d1-80b4-00c04fd430c8.
Clone git@github.com:org/repo.git or user@host; pip install torch==2.6.0+cu124 @ file:///x.
Timestamps 1700000000 and 1700000000123, sizes 1024x768 and 16,384 bytes, port 127.0.0.1:8080.
SELECT password FROM users; password = get_password(user); token: str = None; api_key=API_KEY
Your password: required. The password is case-sensitive; secret: "placeholder_value"; pwd=$HOME/src
The mean was 3.14159265358979, the ratio 1:1000000, the phone rang 555 times, dial 911 or 112.
ISBN 978-3-16-148410-0, DOI 10.1000/182, RFC 5322, MAC 00:1a:2b:3c:4d:5e, time 12:34:56:78.
sk-learn-contrib-some-package-name, class sk_live_test, -----BEGIN CERTIFICATE-----
Alice was born on a Monday; date of birth is asked for. (2018) 123-4567 pages 200-300.
""".strip().split("\n")


@pytest.mark.parametrize("text", BENIGN)
@pytest.mark.parametrize("name", ["secrets", "personal-data"])
def test_technical_prose_holds_neither_secrets_nor_personal_data(name: Shipped, text: str) -> None:
    assert shipped(name).find(text) == []


def test_whole_words_are_not_found_inside_others_but_parts_are() -> None:
    assert WORDS.find("pistols, epistol, pistol_1") == []
    assert [match.label for match in WORDS.find("cyanide")] == ["PART"]


def test_phrases_span_the_white_space_between_their_words() -> None:
    text = "a pipe \n  bomb, pipebomb, pipe bombs"
    assert WORDS.find(text) == [Match(2, 14, "PHRASE", "plain")]


def test_words_of_phrases_may_be_joined_by_a_hyphen_or_an_underscore() -> None:
    found = WORDS.find("a pipe-bomb, PIPE_BOMB, pipe.bomb and my_pipe_bomb_2")
    assert [(match.start, match.end) for match in found] == [(2, 11), (13, 22)]


def test_surroundings_are_shared_between_neighbours() -> None:
    assert [(match.start, match.end) for match in WORDS.find("123 456 789 1000")] == [
        (0, 3),
        (4, 7),
        (8, 11),
    ]


def test_capitals_of_other_scripts_are_the_same_word() -> None:
    matches = PatternSet.from_toml('[[words]]\nlabel = "X"\nwords = ["νερό"]').find("ΝΕΡΟ, νερό")
    assert [(match.start, match.end) for match in matches] == [(0, 4), (6, 10)]


def test_of_overlapping_matches_everything_is_covered() -> None:
    patterns = PatternSet.from_toml(
        '[[words]]\nlabel = "A"\nwords = ["abcd", "bc"]\nwhole = false\n'
        '[[words]]\nlabel = "B"\nwords = ["cdef"]\nwhole = false'
    )
    assert patterns.find("xabcdefx") == [Match(1, 5, "A", "plain"), Match(5, 7, "B", "plain")]


def test_a_pattern_is_matched_in_its_views_alone() -> None:
    listed = '[[words]]\nlabel = "X"\nwords = ["pistol"]\nviews = ["plain", "base64"]'
    patterns = PatternSet.from_toml(listed)
    for disguise, count in {
        "plain": 1,
        "base64": 1,
        "base64 twice": 1,
        "leet": 0,
        "url": 0,
    }.items():
        assert len(patterns.find(DISGUISES[disguise]("pistol"))) == count, disguise


def test_the_longest_match_bounds_the_text_that_a_stream_holds_back() -> None:
    assert WORDS.longest == len("nitroglycerin")
    listed = "[[regex]]\nlabel = \"X\"\npattern = 'ab{1,40}'"
    assert PatternSet.joined([WORDS, PatternSet.from_toml(listed)]).longest == 41


def test_joined_sets_find_the_matches_of_each() -> None:
    both = PatternSet.joined([WORDS, shipped("personal-data")])
    assert both.labels == WORDS.labels | shipped("personal-data").labels
    text = "pistol to joe@example.com"
    assert [match.label for match in both.find(text)] == ["WEAPON", "EMAIL"]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.toml: cannot be read"):
        PatternSet.load(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ValueError, match="empty.toml: the list is empty"):
        PatternSet.load(tmp_path / "empty.toml")


@given(st.text("pistol 123\u200bо.\u0301", max_size=80), st.integers(0, 80), st.integers(0, 80))
@settings(max_examples=300)
def test_a_window_with_room_around_it_shows_the_same_matches(text: str, a: int, b: int) -> None:
    patterns = PatternSet.from_toml(
        'views = ["plain"]\n[[words]]\nlabel = "W"\nwords = ["pistol", "to"]\n'
        "[[regex]]\nlabel = \"N\"\npattern = '(?:^|[^0-9])(?P<value>[0-9]{2,3})(?:[^0-9]|$)'"
    )
    start, end = sorted((min(a, len(text)), min(b, len(text))))
    room = patterns.longest + 1
    in_window = {
        (match.start + start, match.end + start, match.label)
        for match in patterns.find(text[start:end])
    }
    # Room is counted in characters that show.
    visible = [place for place, char in enumerate(text) if char not in "\u200b\u0301"]
    for match in patterns.find(text):
        left = sum(start <= place < match.start for place in visible)
        right = sum(match.end <= place < end for place in visible)
        inside = start <= match.start and match.end <= end
        if inside and (left >= room or start == 0) and (right >= room or end == len(text)):
            assert (match.start, match.end, match.label) in in_window


@pytest.mark.parametrize("unit", ["a", "%", "A", *LISTED])
def test_hostile_texts_take_linear_time(unit: str) -> None:
    patterns = PatternSet.joined([WORDS, shipped("secrets"), shipped("personal-data")])
    text = unit * (200_000 // len(unit))
    assert takes_less(lambda: patterns.find(text), 5.0)


def test_what_stands_behind_an_escape_is_found_and_the_escape_is_no_part_of_it() -> None:
    text = r"{\"note\": \"Numbers:\n078-05-1120\n415-555-2671\n4111111111111111\nann@example.com\"}"
    found = [text[match.start : match.end] for match in shipped("personal-data").find(text)]
    assert found == ["078-05-1120", "415-555-2671", "4111111111111111", "ann@example.com"]


@given(
    st.lists(
        st.sampled_from(
            [
                "sk-abcd",
                "SK-abcd",
                "John\u00a0D\u043ee",
                "john\ndoe",
                "\u200b",
                "\ud800",
                "\u00fcnd",
            ]
            + [" ", "x", "%73k-abcd", "736b2d6162636465", "am9obiBkb2UgaXMgaGVyZQ==", "\\n"]
        ),
        max_size=6,
    )
)
def test_a_glance_at_a_text_misses_no_match(parts: list[str]) -> None:
    text = "".join(parts)
    found = PLAINLY.find(text)
    assert PLAINLY.reads_plainly
    PLAINLY.reads_plainly = False
    try:
        assert found == PLAINLY.find(text)
    finally:
        PLAINLY.reads_plainly = True
