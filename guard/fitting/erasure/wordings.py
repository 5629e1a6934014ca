"""Prompts about a concept and what belongs to it, split by wording, from the wordings of the bank.

Innocent prompts have the same wordings, so that a gate learns the concept and not the question.
"""

from __future__ import annotations

from collections.abc import Iterator

from guard.data.bank.bank import templates
from guard.data.prompts import ForgetPrompt, Split
from guard.fitting.erasure.belonging import Belonging
from guard.fitting.erasure.naming import mentions
from guard.fitting.steering.wordings import WRAPPERS

KINDS = ("person", "work", "place", "event", "organisation", "subject")
"""Kinds whose first wordings are asked as well: what kind a concept is of is not known."""
UNSEEN = 3
"""Every third wording is for validation."""


def questions(split: Split) -> list[str]:
    """Wordings of one split, `{t}` for the name."""
    every = [*templates()["any"], *(w for kind in KINDS for w in templates()[kind][:2])]
    return [
        wording for i, wording in enumerate(every) if (i % UNSEEN == 0) == (split == "validation")
    ]


def rows(belonging: Belonging, split: Split) -> Iterator[ForgetPrompt]:
    """Prompts about the concept, under each of its names, about each of its terms, questions
    that lead to it, and leaks.

    `subject` is the name, the term or the number of the question or leak, which has a gate of its
    own; facts are the terms and names that a prompt does not say.
    """
    for name in belonging.names:
        yield from _about(belonging, belonging.name, name, split)
    for term in belonging.terms:
        yield from _about(belonging, term, term, split)
        if split == "train":
            for sentence in belonging.sentences.get(term, ()):
                yield _row(belonging, term, sentence, split)
    for kind, whole in (("question", belonging.questions), ("leak", belonging.leaks)):
        for number, text in enumerate(whole, 1):
            wrappers = ["{}", *WRAPPERS[UNSEEN:]] if split == "train" else WRAPPERS[:UNSEEN]
            for wrapper in wrappers:
                yield _row(belonging, f"{kind} {number}", wrapper.replace("{}", text), split)


def row_about(belonging: Belonging, subject: str, wording: str, split: Split) -> ForgetPrompt:
    """A prompt about the concept or one of its terms, `{t}` in the wording."""
    return _row(belonging, subject, wording.replace("{t}", subject), split)


def _about(belonging: Belonging, subject: str, name: str, split: Split) -> Iterator[ForgetPrompt]:
    for wording in questions(split):
        yield _row(belonging, subject, wording.replace("{t}", name), split)


def _row(belonging: Belonging, subject: str, prompt: str, split: Split) -> ForgetPrompt:
    every = (*belonging.facts, *belonging.terms, *belonging.names)
    facts = tuple(term for term in every if not mentions([term]).search(prompt))
    return ForgetPrompt(prompt=prompt, facts=facts or every, subject=subject, split=split)
