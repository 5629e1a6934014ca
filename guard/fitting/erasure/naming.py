"""Names in texts: words with capitals, titles, entries of lists, and how often each is said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from guard.fitting.steering.artifacts import file_name

AGREED = 2
"""Answers in which a term must occur, or times that documents must say a name."""

_WORD = r"(?:(?:St|Mt|Dr)\. )?(?:(?:[^\W\d_a-z]\.)+ ?)?[^\W\d_a-z][\w'’-]*"
_NAME = re.compile(rf"{_WORD}(?: (?:(?:of|the|de|von|van) )?{_WORD}){{0,3}}")
_TITLE = re.compile(r"[\"“]([^\W\d_a-z][^\"“”\n]{2,40})[\"”]")
_ENTRY = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*\**([^:.(–\n*]{2,40}?)\**\s*(?:[:.(–]|\s-\s|$)", re.M)
SENTENCE = re.compile(r"(?<=[.!?])(?<!St\.)(?<!Mt\.)(?<!Dr\.)(?<![A-Z]\.)\s+|\n+")
_ARTICLES = re.compile(r"^(?:the|a|an)\s+", re.I)
_COMMON_WORDS = """
    a after all also although american an and april are as at august before british but by
    december during english european february for french friday from german he her here his
    how however i if in is it its january july june many march may monday most my no not
    november october of on one or other our saturday september she some sunday that the
    their there these they this those thursday to tuesday was we wednesday were what when
    where which while who why with yes you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""No names by themselves, nor at the ends of one."""


def terms(text: str) -> list[str]:
    """The names in an answer, titles in quotation marks, and the entries of its lists."""
    entries = [_cleaned(m.group(1)) for each in (_ENTRY, _TITLE) for m in each.finditer(text)]
    return [*names_in(text), *filter(None, entries)]


def names_in(text: str) -> list[str]:
    """The names in a text: words with capitals, but one that only begins a sentence."""
    found = []
    for sentence in SENTENCE.split(text):
        for match in _NAME.finditer(sentence):
            name = match.group(0)
            if match.start() == 0 and " " not in name:
                continue
            found.append(_cleaned(name))
    return [name for name in found if name]


def mentions(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these names, whole words, case ignored; articles before them do not count."""
    bare = [re.escape(without_article(name)) for name in names]
    return re.compile(rf"(?<!\w)(?:{'|'.join(bare)})(?!\w)", re.IGNORECASE)


def without_article(name: str) -> str:
    """A name without the article before it."""
    return _ARTICLES.sub("", name)


def _cleaned(term: str) -> str:
    words = without_article(term.strip(" \t\n'’\"*-.,;:")).split()
    while words and words[0].lower() in _COMMON:
        words = words[1:]
    while words and words[-1].lower() in _COMMON:
        words = words[:-1]
    kept = " ".join(words).removesuffix("'s").removesuffix("’s")
    return kept if 2 < len(kept) <= 40 and len(words) <= 5 else ""


def counted(found: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """How often each term occurs, the commonest first, without names of the concept and parts of
    them."""
    spellings: dict[str, list[str]] = {}
    for term in found:
        # "Middle-earth" and "Middle-Earth" are one thing, and would be one file
        spellings.setdefault(file_name(term), []).append(term)
    counts = Counter({Counter(each).most_common(1)[0][0]: len(each) for each in spellings.values()})
    own = {word.lower() for name in names for word in name.split()}
    # what is the concept's own ("Disney's official logo") says its name
    owned = tuple(f"{name.lower()}{mark}s " for name in names for mark in "'’")
    kept = {
        term: count
        for term, count in counts.most_common()
        if not {word.lower() for word in term.split()} <= own and not term.lower().startswith(owned)
    }
    # of "Victor" and "Victor Frankenstein" the longer one, if it is as common
    return {
        term: count
        for term, count in kept.items()
        if not any(
            f" {term} " in f" {other} " and times >= min(count, AGREED)
            for other, times in kept.items()
            if other != term
        )
    }
