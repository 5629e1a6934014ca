from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.config.toml_lines import KeyPath, key_lines, line_of

BARE = st.text("abcXYZ019_-", min_size=1, max_size=6)
QUOTED = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)
NAMES = st.one_of(BARE, QUOTED)
COMMENTS = st.sampled_from(["", " # [x] = '''", '\t# """ { [', "#"])
BLANKS = st.lists(st.sampled_from(["", "  ", "# a = 1", "\t#]]"]), max_size=2)


def basic(text: str) -> str:
    """`text` as a TOML basic string."""
    escaped = "".join(
        f"\\U{ord(c):08x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text
    )
    return f'"{escaped}"'


def spelled(name: str) -> str:
    bare = name and all(c in "abcXYZ019_-" for c in name)
    return name if bare else basic(name)


SCALARS = st.one_of(
    st.integers(-9, 9).map(str),
    st.sampled_from(["true", "1979-05-27 07:32:00Z", "0x1F", "inf", "1e3", "'[a] # = \\'"]),
    QUOTED.map(basic),
    st.sampled_from(
        ['"""\n[no]\nkey = 1\n\\""" """""', "'''\n# \" {\n''''", '"""a\\\\"""', "''", '""']
    ),
)


def gap() -> st.SearchStrategy[str]:
    return st.sampled_from(["", " ", "\n", " # ] , }\n ", "\n\n"])


def arrays(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    element = st.tuples(gap(), inner, gap()).map("".join)
    return st.tuples(st.lists(element, max_size=3), gap()).map(
        lambda parts: "[" + ",".join(parts[0]) + (f",{parts[1]}" if parts[0] else parts[1]) + "]"
    )


def inline_tables(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.dictionaries(NAMES, inner, max_size=3).map(
        lambda table: "{" + ", ".join(f"{spelled(k)} = {v}" for k, v in table.items()) + "}"
    )


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=5)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """A TOML text, and the line of each header and key as the writer of the text knows it."""
    text: list[str] = []
    known: dict[KeyPath, int] = {}

    def write(statement: str, *paths: KeyPath) -> None:
        text.extend(draw(BLANKS))
        for path in paths:
            known.setdefault(path, "\n".join([*text, ""]).count("\n") + 1)
        text.append(draw(st.sampled_from(["", "  "])) + statement + draw(COMMENTS))

    def pairs(table: KeyPath) -> None:
        for name, value in draw(st.dictionaries(NAMES, VALUES, max_size=3)).items():
            write(f"{spelled(name)} = {value}", (*table, name))

    pairs(())
    top = {str(path[0]) for path in known}
    for name in draw(st.lists(NAMES.filter(lambda n: n not in top), unique=True, max_size=3)):
        if draw(st.booleans()):
            write(f"[ {spelled(name)} ]", (name,))
            pairs((name,))
        else:
            for index in range(draw(st.integers(1, 3))):
                write(f"[[{spelled(name)}]]", (name,), (name, index))
                if draw(st.booleans()):
                    write("dotted.below = 1", (name, index, "dotted", "below"))
                if draw(st.booleans()):
                    write(f"[{spelled(name)} . sub]", (name, index, "sub"))
                    pairs((name, index, "sub"))
    return "\n".join(text), known


def paths_of(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    paths = [(*path, name) for name, _ in children]
    return paths + [deeper for name, child in children for deeper in paths_of(child, (*path, name))]


@given(documents(), st.sampled_from(["\n", "\r\n"]))
def test_every_path_has_its_line(document: tuple[str, dict[KeyPath, int]], newline: str) -> None:
    text, known = document
    text = text.replace("\n", newline)
    parsed = tomllib.loads(text)
    lines = key_lines(text)
    assert set(lines) == set(paths_of(parsed))
    assert {path: lines[path] for path in known} == known


def test_elements_and_inline_keys_have_their_lines() -> None:
    lines = key_lines("a = [\n 1,\n {b = 2, c.d = 3},\n]")
    assert lines[("a",)] == 1
    assert lines[("a", 0)] == 2
    assert {lines[("a", 1)], lines[("a", 1, "b")], lines[("a", 1, "c", "d")]} == {3}


def test_an_explicit_header_wins_over_a_mention() -> None:
    assert key_lines("[a.b]\nx = 1\n[a]\ny = 2")[("a",)] == 3


def test_a_missing_key_has_the_line_of_its_table() -> None:
    lines = key_lines("\n[[guards]]\nname = 'a'\n[[guards]]\n")
    assert line_of(lines, ("guards", 1, "artifact")) == 4
    assert line_of(lines, ("nowhere", "at all")) == 1


def test_a_long_text_are_scanned_in_linear_time() -> None:
    assert key_lines("# c\n" * 100_000 + "a = 1")[("a",)] == 100_001


def test_deep_nesting_ends_in_recursion_error_not_in_a_crash() -> None:
    with pytest.raises(RecursionError):
        key_lines("a = " + "[" * 100_000 + "]" * 100_000)
