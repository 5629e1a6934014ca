"""Counts the letters of English and of other languages for `classifiers.text.disguises.language`.

    python -m benchmarks.disguises.letters

English is counted in this project's documents, in the definitions of WordNet's nouns and in the
topics of Python's manual, other languages in the words with which Faker fills its pages. The file
has likelihoods of letters, a list of common words, in the order of their frequency, and one of
rare words, which the definitions have a few times.
"""

from __future__ import annotations

import importlib
import lzma
import pkgutil
import pydoc_data.topics
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faker.providers.lorem
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from classifiers.text.disguises.folding import fold
from classifiers.text.disguises.language import FILE, NATS, SYMBOLS, codes_of
from guard.data.nouns.nouns import FILE as THINGS

_WORD = re.compile(r"[a-z]+")
_CODE = re.compile(r"```.*?```|`[^`]*`|^    [^\n]*$|https?://\S+|\|", re.DOTALL | re.MULTILINE)
_DEFINITIONS = 0.15
"""The weight of definitions, which outnumber the rest and have few verbs."""
WORDS = 6000
FEWEST_USES, FEWEST_LETTERS = 3, 4
"""Of a rare word."""


def main() -> None:
    """Write the file."""
    documents = " ".join(
        _CODE.sub(" ", path.read_text(encoding="utf-8"))
        for path in sorted(Path("docs").glob("*.md"))
    )
    documents += _CODE.sub(" ", " ".join(pydoc_data.topics.topics.values()))
    documents += " ".join(_said(Path("examples/screens")))
    documents += " ".join(_faker_words("en_US")) * 3
    definitions = " . ".join(
        line.rsplit("\t", 1)[1]
        for line in lzma.decompress(THINGS.read_bytes()).decode().splitlines()
    )
    counts = _counts(documents) + _DEFINITIONS * _counts(definitions)
    others = [_counts(" ".join(_faker_words(name))) for name in _faker_languages()]
    any_language = counts / counts.sum() + sum(other / other.sum() for other in others)
    words = Counter(_WORD.findall(documents.lower()))
    for word, count in Counter(_WORD.findall(definitions.lower())).items():
        words[word] += round(_DEFINITIONS * count)
    common = [word for word, count in words.most_common(WORDS) if count > 2]
    text = " ".join(word for word in common if len(word) > 1 or word in "ai")
    save_file(
        {
            "english": _quantised(counts),
            "any": _quantised(any_language * counts.sum()),
            "words": np.frombuffer(text.encode(), np.uint8),
            "rare": np.frombuffer(" ".join(_rare(definitions, common)).encode(), np.uint8),
        },
        str(FILE),
    )


def _rare(definitions: str, common: list[str]) -> list[str]:
    """Other words of the definitions, in the order of the alphabet."""
    counts, known = Counter(_WORD.findall(definitions.lower())), frozenset(common)
    return sorted(
        word
        for word, count in counts.items()
        if count >= FEWEST_USES and len(word) >= FEWEST_LETTERS and word not in known
    )


def _said(folder: Path) -> Iterator[str]:
    """What people ask, and how they are answered: the sentences for which screens are fitted."""
    for path in sorted(folder.glob("*.json")):
        yield from re.findall(r'"([^"]{20,})"', path.read_text(encoding="utf-8"))


def _faker_languages() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(faker.providers.lorem.__path__)]
    return [
        name
        for name in names
        if name not in {"en_US", "de_AT", "es_AR", "es_MX", "nl_BE", "tl_PH", "en_PH"}
        and all(fold(word).text.isascii() for word in _faker_words(name)[:50])
    ]


def _faker_words(name: str) -> list[str]:
    module = importlib.import_module(f"faker.providers.lorem.{name}")
    return list(module.Provider.word_list)


def _counts(text: str) -> NDArray[np.float64]:
    """How often each three letters come, `[SYMBOLS, SYMBOLS, SYMBOLS]`; a gap counts as one."""
    codes = codes_of(" " + fold(text).text + " ")
    codes = codes[(codes > 0) | (np.roll(codes, 1) > 0)].astype(np.int64)
    places = (codes[:-2] * SYMBOLS + codes[1:-1]) * SYMBOLS + codes[2:]
    counts = np.bincount(places, minlength=SYMBOLS**3).astype(np.float64)
    return counts.reshape(SYMBOLS, SYMBOLS, SYMBOLS)


def _quantised(counts: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Minus the logarithm of the likelihood of each letter behind two others, in NATS.

    Behind a gap, what stands before it does not count. Interpolated after Witten and Bell.
    """
    counts = counts.copy()
    counts[:, 0] = counts[:, 0].sum(0)
    single = counts.sum((0, 1)) + 1
    likely = np.broadcast_to(single / single.sum(), (SYMBOLS, SYMBOLS))
    likely = _interpolated(counts.sum(0), likely)
    likely = _interpolated(counts, np.broadcast_to(likely, counts.shape))
    steps = np.round(-np.log(likely) / NATS)
    steps[:, 0, 0] = 0
    return np.clip(steps, 0, 255).astype(np.uint8)


def _interpolated(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    total = counts.sum(-1, keepdims=True)
    kinds = (counts > 0).sum(-1, keepdims=True) + 1
    return np.asarray((counts + kinds * prior) / (total + kinds))


if __name__ == "__main__":
    main()
