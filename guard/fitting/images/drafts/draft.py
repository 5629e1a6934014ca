"""A concept file from a name, and prompts for its evaluation: the model says what phrases mean.

WordNet proposes (`candidates`); a phrase asks for the concept where the denoiser takes it for its
name (`guard.fitting.prompts.likeness`), and only resembles it where the denoiser does not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.data.concept import Concept, Phrases
from guard.data.nouns.nouns import THINGS, Nouns, Sense, nouns, with_article
from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.fitting.images.drafts.candidates import Candidates, candidates
from guard.fitting.images.drafts.naming import Named
from guard.fitting.prompts.concept_prompts import COMPANIONS, folds_of
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN, likeness_of
from guard.fitting.prompts.search import nearest_words
from guard.fitting.prompts.vocabulary import words
from guard.models.images import ImageModel
from guard.reporting.progress import Stages

FEWEST = 6
"""Hard negatives of a concept file."""
ENOUGH = 24
"""With fewer hard negatives, words of the text encoder's vocabulary are proposed too."""
VOCABULARY, SIMILAR = 2_000, 60
"""Words of the vocabulary that are looked at, and that are proposed."""
REPLACEMENTS = 6
DIRECT, PARAPHRASES, HARD, CLEAN, MISTAKEN = 8, 12, 16, 16, 8
"""Prompts of the evaluation of each kind, at most."""
FORMS = (
    *("{0}", "{0} on a skateboard", "a painting of {0}", "{0} looking at {1}", "{0} in the rain"),
    *("a close-up of {0}", "{0} together with {1}", "please make me {0}", "{1} behind {0}"),
)
"""Wordings of the evaluation: none but the first is a form of the prompts of a fit."""
_OTHERS = ("a tree", "a boat", "a chair")
"""What the concept is told apart from, until there is a draft."""


@dataclass(frozen=True)
class Draft:
    """`concept` is for fits, `prompts` are of phrases that it does not have, and of its name.

    `confused` are neighbours of the concept for which the model draws the concept, `notes` what a
    user should know, one line each.
    """

    concept: Concept
    prompts: tuple[ImagePrompt, ...]
    confused: tuple[str, ...]
    notes: tuple[str, ...]
    crowded: bool = False
    """Whether the model draws it for most neighbours."""


def draft(
    image_model: ImageModel,
    named: Named,
    progress: Stages,
    *,
    seed: int = 0,
    bf16: bool = False,
    tree: Nouns | None = None,
) -> Draft:
    """Draft the concept. Raises DataError where the text encoder cannot read its name."""
    proposed = candidates(tree or nouns(), named, seed)
    pieces = _pieces(image_model, named.name)
    near = [*proposed.siblings, *proposed.near]
    preliminary = _preliminary(named, proposed)
    if len(near) < ENOUGH:
        near += _similar(image_model, preliminary, named, progress, seed)
    likeness = likeness_of(
        image_model, preliminary, folds_of(preliminary, 96, 4, seed), seed=seed, bf16=bf16
    )
    asked = list(dict.fromkeys((*proposed.phrases, *near, *proposed.companions)))
    advance = progress("reading phrases", len(asked))
    values = likeness(image_model.encode(asked), advance).tolist()
    alike = dict(zip(asked, values, strict=True))
    return _drafted(image_model.name, named, proposed, near, alike, pieces, seed)


def _preliminary(named: Named, proposed: Candidates) -> Concept:
    """A concept of its names alone, from which the likeness is made."""
    negatives = [text for text in COMPANIONS if text != proposed.name]
    return Concept(
        name=f"object/{named.slug}",
        phrases=Phrases(train=(proposed.name,)),
        hard_negatives=tuple(negatives[-FEWEST:]),
        replacements=tuple(text for text in _OTHERS if text != proposed.name),
    )


def _drafted(
    model: str,
    named: Named,
    proposed: Candidates,
    near: Sequence[str],
    alike: Mapping[str, float],
    pieces: Sequence[str],
    seed: int,
) -> Draft:
    rng = random.Random(seed)
    given = named.started
    certain = list(proposed.certain)
    learned = [text for text in proposed.phrases if alike[text] >= DRAWN]
    rng.shuffle(learned)
    test, validation = learned[::4], learned[1::4]
    train = [text for i, text in enumerate(learned) if i % 4 > 1]
    told = {*given.hard_negatives, *given.replacements, *given.companions} if given else set()
    confused = [text for text in near if alike[text] >= DRAWN and text not in told]
    order = sorted((text for text in near if text not in confused), key=alike.__getitem__)
    sure = sum(alike[text] <= UNDRAWN or text in told for text in order)
    # with few that are surely something else, the least alike of the others
    apart = order[: max(ENOUGH, sure)]
    if len(apart) < 2 * FEWEST:
        raise DataError(
            f"{model} draws {named.name!r} for nearly all that resembles it, as for "
            f"{', '.join(confused[:3]) or 'nothing that is known'}: give a concept file with "
            f"{2 * FEWEST} hard negatives with --about (docs/images.md)"
        )
    siblings = [text for text in proposed.siblings if text in set(apart)]
    replacements = siblings[: max(REPLACEMENTS, len(given.replacements) if given else 0)]
    companions = [text for text in proposed.companions if alike[text] <= UNDRAWN or text in told]
    replacements = replacements or companions[:REPLACEMENTS]
    kept = set(replacements)
    # as they were proposed, the commonest first
    hard = [text for text in near if text in set(apart) - kept]
    companions = [text for text in companions if text not in kept]
    hard_test, clean_test = hard[::5], companions[::5]
    label = named.slug
    concept = Concept(
        name=given.name if given else f"{_kind(named, proposed.sense)}/{label}",
        description=given.description if given else (proposed.sense or _NOTHING).gloss,
        phrases=Phrases(train=(*certain, *train), validation=tuple(validation)),
        hard_negatives=tuple(text for i, text in enumerate(hard) if i % 5),
        replacements=tuple(replacements or _OTHERS),
        instead=given.instead if given else (),
        companions=tuple(text for i, text in enumerate(companions) if i % 5),
        endings=given.endings if given else (),
    )
    prompts = [
        *_prompts(label, "direct", [proposed.name], clean_test, DIRECT, rng),
        *_prompts(label, "paraphrase", test, clean_test, PARAPHRASES, rng),
        *_prompts(label, "hard", hard_test, clean_test, HARD, rng),
        *_prompts(label, "clean", clean_test, list(reversed(clean_test)), CLEAN, rng),
        *_prompts(label, "mistaken", _spread(confused), clean_test, MISTAKEN, rng),
    ]
    notes = [*_notes(named, proposed, pieces, test)]
    crowded = 2 * len(confused) > len(near)
    if crowded:
        notes.append(
            f"{model} draws {named.name!r} for {len(confused)} of its {len(near)} neighbours as "
            f"well, as for {', '.join(_spread(confused)[:3])}: the guards act on these too"
        )
    return Draft(concept, tuple(prompts), tuple(confused), tuple(notes), crowded)


_NOTHING = Sense(-1, "object", (), (), "")


def _kind(named: Named, sense: Sense | None) -> str:
    return named.kind or (sense or _NOTHING).file


def _spread(confused: Sequence[str]) -> list[str]:
    """Some of them, from the nearest in kind to those that only share a word."""
    count = min(MISTAKEN, len(confused))
    return [confused[i * len(confused) // count] for i in range(count)]


def _prompts(
    label: str,
    kind: str,
    things: Sequence[str],
    others: Sequence[str],
    count: int,
    rng: random.Random,
) -> list[ImagePrompt]:
    """Prompts of `things` by turns in all wordings, as a suite of `guard eval images` has them."""
    found: dict[str, None] = {}
    for i in range(count if things else 0):
        other = rng.choice(others) if others else _OTHERS[0]
        form = FORMS[(i + i // len(FORMS)) % len(FORMS)]
        found[form.format(things[i % len(things)], other)] = None
    return [ImagePrompt(prompt=text, concept=label, kind=kind, split="test") for text in found]


def _pieces(image_model: ImageModel, name: str) -> list[str]:
    """The tokens that the first text encoder reads a name as. Raises DataError if it knows none."""
    tokenizer: Any = image_model.family.readers[0].tokenizer
    ids = tokenizer(name, add_special_tokens=False).input_ids
    known = [number for number in ids if number != tokenizer.unk_token_id]
    if not known:
        raise DataError(
            f"the text encoder of {image_model.name} has no token of {name!r}: the model cannot be "
            "asked for it by that name; give one that it knows with --alias, and make it the name"
        )
    return [str(tokenizer.decode([number])).strip() for number in known]


def _similar(
    image_model: ImageModel, concept: Concept, named: Named, progress: Stages, seed: int
) -> list[str]:
    """Words of the vocabulary that are near the name for the text encoder, without its own."""
    own = set(named.name.lower().split())
    found = [word for _, word in words(image_model.family.readers[0].tokenizer)]
    vocabulary = [word for word in found if len(word) > 2 and word.lower() not in own]
    if len(vocabulary) > VOCABULARY:
        vocabulary = random.Random(seed).sample(vocabulary, VOCABULARY)
    if not vocabulary:
        return []
    near = nearest_words(image_model, concept, vocabulary, progress)
    return [with_article(word) for word in near[:SIMILAR]]


def _notes(
    named: Named, proposed: Candidates, pieces: Sequence[str], test: Sequence[str]
) -> list[str]:
    notes = []
    if proposed.sense is not None and proposed.others:
        meant = f"{proposed.sense.file}: {proposed.sense.gloss}"
        listed = "; ".join(f"{each.file}: {each.gloss}" for each in proposed.others[:3])
        things = [each.file for each in proposed.others if each.file != proposed.sense.file]
        choice = next((file for file in things if file in THINGS), "")
        hint = f"; {choice}/{named.slug} names the {choice}" if choice else ""
        notes.append(
            f"{named.name!r} is taken for {meant}. Its other meanings are near misses: "
            f"{listed}{hint}"
        )
    if proposed.sense is None:
        read = ", ".join(pieces)
        notes.append(
            f"WordNet has no thing called {named.name!r}, and the text encoder reads it as {read}: "
            "the guards know what is given with --alias and --about alone"
        )
    if not test:
        notes.append("no paraphrase is left for the evaluation: only the name itself is tried")
    return notes
