"""A quick evaluation of the guards of a concept: prompts in wordings that no fit has, and topics of
the bank that no fit has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from classifiers.text.patterns.matching import PatternSet
from guard.data.bank.bank import templates, topics
from guard.data.prompts import ForgetPrompt, texts
from guard.evaluation.fluency import loops
from guard.evaluation.shares import Share
from guard.fitting.erasure.belonging import Belonging
from guard.fitting.erasure.erase import Erasure
from guard.fitting.erasure.profiling import read_prompts
from guard.fitting.erasure.wordings import row_about
from guard.fitting.files import names_list
from guard.fitting.steering.fit import SteerFit
from guard.fitting.steering.subjects import guarded_answers, subject_guards
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages

Way = Literal["name", "term", "near", "far", "leak", "innocent"]

OF_TERM = 2
"""Prompts about each thing that belongs to the concept."""
DRAFT = 5
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Tried:
    """A prompt with its answers, empty where none was generated; `told` says whether the bare
    answer holds something that belongs to the concept, `leaked` whether the guarded one does.

    `listed` says whether the list of the concept's names finds one in the prompt, with typing
    errors or without. `score` and `threshold` are those of the gate that fired, or came nearest to
    it; None where the engine tells neither."""

    way: Way
    about: str
    prompt: str
    fired: bool
    bare: str = ""
    guarded: str = ""
    told: bool = False
    leaked: bool = False
    listed: bool = False
    score: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All prompts that were tried; a `draft` tries a part of them."""

    tried: tuple[Tried, ...]
    draft: bool = False

    def of(self, way: Way) -> list[Tried]:
        return [each for each in self.tried if each.way == way]

    def fired(self, way: Way) -> Share:
        """The share of prompts of a way on which a guard fires."""
        return Share.of([each.fired for each in self.of(way)])

    def listed(self, way: Way) -> Share:
        """The share of prompts of a way in which the list of names finds one."""
        return Share.of([each.listed for each in self.of(way)])

    @property
    def leaks(self) -> Share:
        """The share of guarded answers that leak, of those that the bare model tells."""
        return Share.of([each.leaked for each in self.tried if each.told])

    @property
    def loops(self) -> Share:
        """The share of guarded answers that loop."""
        return Share.of([loops(each.guarded) for each in self.tried if each.guarded])


def evaluate(
    chat: ChatModel, erasure: Erasure, progress: Stages, *, draft: bool = False
) -> Evaluation:
    """Ask the bare and the guarded model; for a `draft` every DRAFT-th innocent prompt alone."""
    belonging, fit = erasure.belonging, erasure.fit
    assert fit.subjects is not None
    guards = list(subject_guards(fit.subjects, fit.guard))
    guarded = partial(guarded_answers(chat, guards, fit.strength), progress=progress)
    forget = _forget(belonging)
    prompts = texts(forget)
    bare = chat.answer(prompts, max_tokens=ANSWER_TOKENS, what="bare answers", progress=progress)
    answers = guarded(prompts, max_tokens=ANSWER_TOKENS, what="guarded answers")
    # without terms there is nothing but its name to know a leak by, which a refusal may repeat
    told = [
        bool(belonging.terms or belonging.facts) and row.leaks(a.text)
        for row, a in zip(forget, bare, strict=True)
    ]
    tried = [
        Tried(
            way="name" if row.subject == belonging.name else "term",
            about=row.subject,
            prompt=row.prompt,
            fired=answer.fired,
            bare=plain.text,
            guarded=answer.text,
            told=was_told,
            leaked=was_told and row.leaks(answer.text),
            **_nearest(answer),
        )
        for row, plain, answer, was_told in zip(forget, bare, answers, told, strict=True)
    ]
    innocent = [
        (topic, prompt)
        for topic in topics()
        if topic.split == "test" and topic not in erasure.left_out
        for prompt in topic.prompts
    ][:: DRAFT if draft else 1]
    # states are enough: the answers of requests on which nothing fires are the bare model's
    read = partial(_read, chat, fit, progress)
    decisions = read([prompt for _, prompt in innocent], "innocent prompts")
    tried += [
        Tried("near" if topic in erasure.near else "far", topic.name, prompt, **decision)
        for (topic, prompt), decision in zip(innocent, decisions, strict=True)
    ]
    complaints: tuple[tuple[Way, Sequence[str]], ...] = (
        ("leak", belonging.leaks),
        ("innocent", belonging.innocent),
    )
    for way, texts_of in complaints:
        if not texts_of:
            continue
        decisions = read(texts_of, f"{way} prompts")
        tried += [
            Tried(way, way, prompt, **decision)
            for prompt, decision in zip(texts_of, decisions, strict=True)
        ]
    names = PatternSet.from_toml(names_list(belonging.listed))
    return Evaluation(
        tuple(replace(each, listed=bool(names.find(each.prompt))) for each in tried), draft
    )


def _read(
    chat: ChatModel, fit: SteerFit, progress: Stages, prompts: Sequence[str], what: str
) -> list[dict[str, Any]]:
    """For each prompt whether a gate fires, with score and threshold of the one that does, or came
    nearest to it."""
    assert fit.subjects is not None
    gates, thresholds = fit.subjects.gates, fit.subjects.thresholds
    states = read_prompts(chat, prompts, fit.guard.sense_layers, what, progress)
    scores = states.scores(range(gates.shape[1]), gates, fit.guard.pool)
    nearest = (scores - thresholds[:, None]).argmax(0).tolist()
    return [
        {
            "fired": bool(scores[gate, i] > thresholds[gate]),
            "score": round(float(scores[gate, i]), 5),
            "threshold": round(float(thresholds[gate]), 5),
        }
        for i, gate in enumerate(nearest)
    ]


def _nearest(answer: GuardedAnswer) -> dict[str, Any]:
    """Score and threshold of the gate that fired, or of the one that came nearest to it."""
    readings = list(answer.readings.values())
    if not readings:
        return {}
    found = max(readings, key=lambda each: (each.fired, each.score - each.threshold))
    return {"score": round(found.score, 5), "threshold": round(found.threshold, 5)}


def _forget(belonging: Belonging) -> list[ForgetPrompt]:
    wordings = templates()["evaluation"]
    rows = [row_about(belonging, belonging.name, wording, "test") for wording in wordings]
    for i, term in enumerate(belonging.terms):
        chosen = [wordings[(i + k) % len(wordings)] for k in range(OF_TERM)]
        rows += [row_about(belonging, term, wording, "test") for wording in chosen]
    return rows
