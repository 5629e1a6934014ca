"""Thresholds for guards in force together: the rate of requests on which any of them fires.

Each guard is fitted with a rate of its own, and twenty of them may fire on up to twenty times as
many innocent requests. Compared is how far a score is over the guard's threshold, in deviations of
the guard's scores on innocent requests; all thresholds are raised by the same number of deviations,
the least with which the largest distance keeps the rate (split conformal prediction, as in
`classifiers.calibration`). Thresholds are never lowered: a guard keeps its own rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from classifiers.calibration import prompts_needed, threshold_for
from guard.errors import DataError, GuardFailed
from guard.evaluation.shares import Share
from guard.fitting.steering.gate_search import raised
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard

OBSERVED = 1e30
"""A threshold that no score exceeds: the guard is read and never fires."""


@dataclass(frozen=True)
class Scores:
    """The scores `[guards, prompts]` of guards on innocent requests: of the prompts alone, and with
    the bare model's answers."""

    prompts: Tensor
    answered: Tensor


def require_prompts(rate: float, count: int) -> None:
    """Raise DataError where `count` innocent requests are too few for a rate."""
    needed = prompts_needed(rate / 2)
    if count < needed:
        raise DataError(
            f"a rate of {rate:.2%} needs {needed} innocent prompts, half of the rate being for "
            f"answers, and there are {count}: add some, or give a higher --fpr"
        )


def read_scores(
    chat: ChatModel,
    bank: HiddenBank,
    guards: Sequence[RowGuard],
    prompts: Sequence[str],
    *,
    answer_tokens: int,
    progress: Stages,
) -> Scores:
    """The scores of `guards`, which only observe, on prompts and on answers of so many tokens.
    Raises GuardFailed for one that meets NaN."""

    def read(watching: Sequence[RowGuard], tokens: int, what: str) -> Tensor:
        answers = chat.answer(
            prompts, max_tokens=tokens, what=what, progress=progress, bank=bank, guards=watching
        )
        readings = [[answer.readings[guard.name] for answer in answers] for guard in guards]
        for guard, row in zip(guards, readings, strict=True):
            if not all(reading.valid for reading in row):
                raise GuardFailed(f"guard {guard.name!r} met NaN in the model's activations")
        return _doubles([[reading.score for reading in row] for row in readings])

    silent = [replace(guard, acts=False, threshold=OBSERVED, recheck=None) for guard in guards]
    answering = [
        replace(watched, recheck=None if guard.recheck is None else OBSERVED)
        for watched, guard in zip(silent, guards, strict=True)
    ]
    of_prompts = read(silent, 1, "innocent prompts")
    return Scores(of_prompts, read(answering, answer_tokens, "innocent prompts and answers"))


def calibrated(guards: Sequence[RowGuard], scores: Scores, rate: float) -> list[RowGuard]:
    """The guards with thresholds, on prompts and on generated tokens, at which any of them fires on
    a share `rate` of innocent requests: one half on the prompt, one half on the answer. Raises
    DataError for too few requests."""
    require_prompts(rate, scores.prompts.shape[1])
    unit = scores.prompts.std(1).clamp(min=1e-6)
    thresholds = _raised(_thresholds(guards), unit, scores.prompts, rate)
    again = torch.maximum(_rechecks(guards), thresholds)
    checked = torch.tensor([guard.recheck is not None for guard in guards])
    if checked.any():
        again[checked] = _raised(again[checked], unit[checked], scores.answered[checked], rate)
    return [
        replace(
            guard,
            threshold=float(threshold),
            recheck=None if guard.recheck is None else float(recheck),
        )
        for guard, threshold, recheck in zip(guards, thresholds, again, strict=True)
    ]


def fired(guards: Sequence[RowGuard], scores: Scores) -> Share:
    """The share of requests on which any of the guards fires."""
    on_prompt = (scores.prompts > _thresholds(guards)[:, None]).any(0)
    on_answer = (scores.answered > _rechecks(guards)[:, None]).any(0)
    return Share.of((on_prompt | on_answer).tolist())


def _thresholds(guards: Sequence[RowGuard]) -> Tensor:
    return _doubles([guard.threshold for guard in guards])


def _rechecks(guards: Sequence[RowGuard]) -> Tensor:
    """Those of generated tokens, infinite for guards that do not check them."""
    return _doubles([torch.inf if guard.recheck is None else guard.recheck for guard in guards])


def _doubles(values: object) -> Tensor:
    # thresholds that are not raised stay what they are, to the last digit
    return torch.tensor(values, dtype=torch.float64)


def _raised(thresholds: Tensor, unit: Tensor, scores: Tensor, rate: float) -> Tensor:
    """`thresholds [guards]`, higher by the same number of units, so that the largest of `scores
    [guards, requests]` over them keeps one half of the rate."""
    over = ((scores - thresholds[:, None]) / unit[:, None]).amax(0).tolist()
    needed = threshold_for(over, rate / 2)
    return thresholds if needed <= 0 else thresholds + raised(needed, over) * unit
