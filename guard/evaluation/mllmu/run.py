"""One run of suite `mllmu`: the bare model, the policy, baselines, attackers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from guard.data.benchmarks.questions import Benchmark, Part, Question
from guard.evaluation.mllmu.asking import Asked
from guard.evaluation.mllmu.attacks import ATTACKERS, attack, targets_of
from guard.evaluation.mllmu.baselines.refusal import refusal
from guard.evaluation.mllmu.baselines.soft_gate import soft_gate
from guard.evaluation.mllmu.baselines.static import static
from guard.evaluation.mllmu.baselines.training import Example, trained
from guard.evaluation.mllmu.contestants import BARE, BareReplies, Contestant, Reply
from guard.evaluation.mllmu.figures import Result
from guard.reporting.progress import Stages
from steering.prompt import Prompt

FITTED_ON = 96
"""Questions of each side, at most, that baselines are made from."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What a run has beside the policy, and the seed of its samples."""

    baselines: bool = False
    attacks: bool = False
    seed: int = 0


def evaluate(
    benchmark: Benchmark,
    asked: Sequence[Asked],
    guarded: Contestant,
    *,
    folder: Path,
    extras: Extras,
    progress: Stages,
) -> Result:
    """Ask everybody; the bare model's answers are kept in `folder`. Baselines are asked without the
    altered portraits and without thinking aloud.

    Raises DataError where an attack is asked for and no gradient passes the image processor.
    """
    bare = BareReplies(Contestant(BARE, guarded.chat), folder).replies(asked, progress)
    ours = guarded.replies(asked, progress)
    replies: dict[str, Sequence[Reply | None]] = {BARE: bare, guarded.name: ours}
    notes = {guarded.name: guarded.notes}
    if extras.baselines:
        plain = [i for i, item in enumerate(asked) if not item.variant]
        for make in _baselines(benchmark, guarded, extras.seed, progress):
            # one after the other: each trained one is a copy of the model
            baseline = make()
            answers = dict(
                zip(plain, baseline.replies([asked[i] for i in plain], progress), strict=True)
            )
            replies[baseline.name] = [answers.get(i) for i in range(len(asked))]
            notes[baseline.name] = baseline.notes
    attacks = {}
    if extras.attacks:
        targets = targets_of(asked, bare, ours, extras.seed)
        for attacker in ATTACKERS:
            attacks[attacker.name] = attack(attacker, guarded, targets, progress)
    return Result(benchmark, asked, replies, guarded.name, attacks, notes)


def _baselines(
    benchmark: Benchmark, guarded: Contestant, seed: int, progress: Stages
) -> Iterator[Callable[[], Contestant]]:
    """The baselines that the data and the policy allow."""
    chat = guarded.chat
    forget = _sample(benchmark, ("forget",), seed)
    retain = _sample(benchmark, ("retain", "celebrities"), seed)
    if benchmark.names:
        yield lambda: refusal(chat, benchmark.names)
    if forget and retain:
        gone, kept = _examples(guarded, forget), _examples(guarded, retain)
        yield lambda: trained(chat, "gradient ascent", gone, kept, progress, seed=seed)
        yield lambda: trained(chat, "KL minimisation", gone, kept, progress, seed=seed)
    if guarded.steering:
        yield lambda: static(guarded)
        if forget and retain:
            yield lambda: soft_gate(
                chat,
                _mean_directions(guarded),
                max(guard.strength for guard in guarded.guards),
                [_prompt(guarded, question) for question in forget],
                [_prompt(guarded, question) for question in retain],
                progress,
            )


def _sample(benchmark: Benchmark, parts: Sequence[Part], seed: int) -> list[Question]:
    questions = [
        question
        for question in benchmark.questions
        if question.part in parts and question.task == "generation"
    ]
    return random.Random(seed).sample(questions, min(FITTED_ON, len(questions)))


def _examples(guarded: Contestant, questions: Sequence[Question]) -> list[Example]:
    return [
        Example(_prompt(guarded, question), tuple(guarded.chat.ids(question.truth)))
        for question in questions
    ]


def _prompt(guarded: Contestant, question: Question) -> Prompt:
    item = Asked(question)
    return guarded.chat.prompt(item.text, [] if item.image is None else [item.image])


def _mean_directions(guarded: Contestant) -> dict[int, torch.Tensor]:
    """By layer, the mean of the directions of the steering guards that act there, at the token
    where they fire."""
    by_layer: dict[int, list[torch.Tensor]] = {}
    for guard in guarded.steering:
        for i, layer in enumerate(guard.act_layers):
            by_layer.setdefault(layer, []).append(guard.directions[0, i])
    return {layer: torch.stack(found).mean(0) for layer, found in by_layer.items()}
