"""A fitted guard on a loaded model: the scores of its gate, and answers under it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guard.artifact import Artifact
from guard.data.prompts import AskedRow
from guard.errors import ArtifactError
from guard.fitting.steering.asking import asked, prompt_of
from guard.fitting.steering.effort import WHOLE
from guard.fitting.steering.gate_search import collect_states
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard, stacks
from steering.methods.steer import loaded

_NAME = "rebound"


class LoadedGate:
    """The guard of an artifact on a model. Raises ArtifactError for one that does not fit it."""

    def __init__(self, artifact: Artifact, chat: ChatModel, progress: Stages) -> None:
        meta = artifact.meta
        if meta.method != "steer":
            raise ArtifactError(
                f"guards of the method {meta.method!r} cannot be bound to another model, only "
                "those of the method 'steer': fit it on that model"
            )
        fitted, size = meta.model, (chat.depth, chat.width)
        if (fitted.layers, fitted.width) != size:
            raise ArtifactError(
                f"was fitted on {fitted.layers} layers of width {fitted.width}, and {chat.name!r} "
                f"has {size[0]} of width {size[1]}: fit it on that model"
            )
        guard = FittedGuard(_NAME, artifact.tensors, meta.settings)
        try:
            method = method_named(meta.method)
            method.stacked([guard])
            self._tokens = loaded(guard).tokens
            self._layers, self._gates = guard.layers("sense_layers"), guard.array("gates", 2)
            self._pool, self._strength = int(guard.number("pool")), guard.number("strength")
            self.threshold = guard.number("threshold")
            self.recheck = guard.optional_number("recheck")
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        device = str(chat.device)
        self._bank = HiddenBank(stacks([MethodGuard(method, guard)], device), device)
        self._chat, self._progress = chat, progress

    def scores(
        self, rows: Sequence[AskedRow], stage: str, answers: Sequence[GuardedAnswer] = ()
    ) -> list[float]:
        """The score of each prompt; with `answers`, of each prompt and its answer together."""
        prompts = [prompt_of(self._chat, row) for row in rows]
        tokens = [answer.tokens for answer in answers]
        states = collect_states(
            self._chat, prompts, self._layers, stage, self._progress, tokens
        ).only(self._tokens)
        token_scores = states.score(range(len(self._layers)), self._gates)
        scores: list[float] = states.pooled(token_scores, self._pool).tolist()
        return scores

    def bare(self, rows: Sequence[AskedRow], stage: str) -> list[GuardedAnswer]:
        """Greedy answers without the guard."""
        return self._chat.answer(
            asked(self._chat, rows),
            max_tokens=WHOLE.answer_tokens,
            what=stage,
            progress=self._progress,
        )

    def guarded(
        self, rows: Sequence[AskedRow], stage: str, threshold: float, recheck: float | None
    ) -> list[GuardedAnswer]:
        """Greedy answers under the guard with these thresholds."""
        return self._chat.answer(
            asked(self._chat, rows),
            max_tokens=WHOLE.answer_tokens,
            what=stage,
            progress=self._progress,
            bank=self._bank,
            guards=[RowGuard(_NAME, threshold, self._strength, True, recheck)],
        )

    def require_finite(self, scores: Sequence[float]) -> None:
        """Raise ArtifactError where the gate meets NaN in the model's activations."""
        if not torch.tensor(list(scores)).isfinite().all():
            raise ArtifactError(f"the activations of {self._chat.name!r} are not finite")
