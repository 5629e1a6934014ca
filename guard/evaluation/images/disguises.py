"""Spellings of a word that a reader understands and a filter may not.

Each function takes a word and the number of the variant; the same arguments give the same spelling.
Every variant of a word of letters differs from the word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LOOKALIKES = str.maketrans("aeiost", "431057")


def _swap(word: str, variant: int) -> str:
    """Two neighbouring letters change places: "knfie"; never two of the same."""
    positions = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    # readers recognise a word by its first letter, which stays if possible
    positions = [i for i in positions if i] or positions
    if not positions:
        return word * 2
    i = positions[variant % len(positions)]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _drop(word: str, variant: int) -> str:
    """A letter is missing: "knfe"."""
    i = 1 + variant % max(len(word) - 1, 1)
    return word[:i] + word[i + 1 :] if len(word) > 1 else word * 2


def _double(word: str, variant: int) -> str:
    """A letter is doubled: "kniife"."""
    i = variant % len(word)
    return word[:i] + word[i] + word[i:]


def _neighbour(word: str, variant: int) -> str:
    """The key beside the right one was hit: "knige"."""
    i = variant % len(word) if len(word) < 3 else 1 + variant % (len(word) - 1)
    row = next((row for row in _KEYS if word[i].lower() in row), "xz")
    column = row.find(word[i].lower())
    return word[:i] + row[column - 1 if column else 1] + word[i + 1 :]


def _lookalike(word: str, _variant: int) -> str:
    """Digits for letters: "kn1f3"."""
    written = word.lower().translate(_LOOKALIKES)
    return written if written != word.lower() else f"{word}0"


def _spaced(word: str, _variant: int) -> str:
    """Letter by letter: k n i f e."""
    return " ".join(word) if len(word) > 1 else f" {word} "


def _split(word: str, variant: int) -> str:
    """In two: kn ife."""
    i = 1 + (len(word) // 2 - 1 + variant) % max(len(word) - 1, 1)
    return f"{word[:i]} {word[i:]}"


def _mixed(word: str, variant: int) -> str:
    """kNiFe."""
    return "".join(
        letter.upper() if (i + variant) % 2 else letter.lower() for i, letter in enumerate(word)
    )


def _capitals(word: str, _variant: int) -> str:
    """KNIFE."""
    return word.upper()


def _dotted(word: str, variant: int) -> str:
    """k.n.i.f.e, k-n-i-f-e."""
    mark = ".-_*"[variant % 4]
    return mark.join(word) if len(word) > 1 else f"{mark}{word}{mark}"


def _mark_inside(word: str, variant: int) -> str:
    """kni-fe."""
    i = 1 + (len(word) // 2 + variant) % max(len(word) - 1, 1)
    return f"{word[:i]}{'-.*/'[variant % 4]}{word[i:]}"


def _quoted(word: str, variant: int) -> str:
    """*knife*."""
    mark = ("*", '"', "~", "!!")[variant % 4]
    return f"{mark}{word}{mark}"


DISGUISES: Mapping[str, Callable[[str, int], str]] = {
    "swapped letters": _swap,
    "missing letter": _drop,
    "doubled letter": _double,
    "neighbouring key": _neighbour,
    "digits for letters": _lookalike,
    "spaced letters": _spaced,
    "split word": _split,
    "mixed case": _mixed,
    "capitals": _capitals,
    "marks between letters": _dotted,
    "mark inside": _mark_inside,
    "marks around": _quoted,
}


def disguise(name: str, text: str, words: Collection[str], variant: int = 0) -> str:
    """`text` with each of `words` in it (whole words, whatever their case) disguised.

    Raises KeyError for an unknown disguise.
    """
    change = DISGUISES[name]
    known = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    pattern = rf"(?<!\w)(?:{known})(?!\w)"
    return re.sub(pattern, lambda match: change(match[0], variant), text, flags=re.IGNORECASE)
