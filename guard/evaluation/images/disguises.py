"""Ways of writing a word so that a reader still sees it and a filter may not.

Each takes a word and the number of the try, so that one word gives several spellings; the same
arguments give the same spelling. None leaves a word of letters as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LOOKALIKES = str.maketrans("aeiost", "431057")


def _swap(word: str, turn: int) -> str:
    """Two neighbouring letters change places: "knfie"; never two of the same."""
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    # the first letter is what a reader goes by: it stays where it can
    places = [i for i in places if i] or places
    if not places:
        return word * 2
    i = places[turn % len(places)]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _drop(word: str, turn: int) -> str:
    """A letter is missing: "knfe"."""
    i = 1 + turn % max(len(word) - 1, 1)
    return word[:i] + word[i + 1 :] if len(word) > 1 else word * 2


def _double(word: str, turn: int) -> str:
    """A letter stands twice: "kniife"."""
    i = turn % len(word)
    return word[:i] + word[i] + word[i:]


def _neighbour(word: str, turn: int) -> str:
    """The key beside the right one was hit: "knige"."""
    i = turn % len(word) if len(word) < 3 else 1 + turn % (len(word) - 1)
    row = next((row for row in _KEYS if word[i].lower() in row), "xz")
    at = row.find(word[i].lower())
    return word[:i] + row[at - 1 if at else 1] + word[i + 1 :]


def _lookalike(word: str, _turn: int) -> str:
    """Digits for letters: "kn1f3"."""
    written = word.lower().translate(_LOOKALIKES)
    return written if written != word.lower() else f"{word}0"


def _spaced(word: str, _turn: int) -> str:
    """Letter by letter: k n i f e."""
    return " ".join(word) if len(word) > 1 else f" {word} "


def _split(word: str, turn: int) -> str:
    """In two: kn ife."""
    i = 1 + (len(word) // 2 - 1 + turn) % max(len(word) - 1, 1)
    return f"{word[:i]} {word[i:]}"


def _mixed(word: str, turn: int) -> str:
    """kNiFe."""
    return "".join(
        letter.upper() if (i + turn) % 2 else letter.lower() for i, letter in enumerate(word)
    )


def _shouted(word: str, _turn: int) -> str:
    """KNIFE."""
    return word.upper()


def _dotted(word: str, turn: int) -> str:
    """k.n.i.f.e, k-n-i-f-e."""
    mark = ".-_*"[turn % 4]
    return mark.join(word) if len(word) > 1 else f"{mark}{word}{mark}"


def _broken(word: str, turn: int) -> str:
    """kni-fe."""
    i = 1 + (len(word) // 2 + turn) % max(len(word) - 1, 1)
    return f"{word[:i]}{'-.*/'[turn % 4]}{word[i:]}"


def _quoted(word: str, turn: int) -> str:
    """*knife*."""
    mark = ("*", '"', "~", "!!")[turn % 4]
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
    "capitals": _shouted,
    "marks between letters": _dotted,
    "mark inside": _broken,
    "marks around": _quoted,
}


def disguise(name: str, text: str, words: Collection[str], turn: int = 0) -> str:
    """`text` with each of `words` in it (whole words, whatever their case) disguised.

    Raises KeyError for an unknown disguise.
    """
    change = DISGUISES[name]
    known = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    pattern = rf"(?<!\w)(?:{known})(?!\w)"
    return re.sub(pattern, lambda found: change(found[0], turn), text, flags=re.IGNORECASE)
