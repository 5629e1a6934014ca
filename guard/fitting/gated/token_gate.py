"""The gate of guards that decide on the prompt: that of a steering guard, or one fitted as it is.

A token scores `Σ_l gates[l] · h_l`, a prompt the mean of its largest token scores; below the
calibrated threshold the guard is silent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.fitting.judgement import HeldOut, Scored
from guard.fitting.steering.asking import prompt_of
from guard.fitting.steering.fit import require_rows
from guard.fitting.steering.gate_search import (
    GateRates,
    collect_states,
    fit_gate,
    read_states,
    share_over,
)
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.fitted import FittedGuard

METHODS = ("steer", "ablation", "sparse", "language-overlay")
"""Those whose artifacts have a gate that others can take over."""
ALWAYS = -1.0
"""The threshold of a gate that scores nothing: every prompt fires."""


@dataclass(frozen=True, eq=False)
class TokenGate:
    """`gates [sense layers, width]`, float32; `calibration` are figures of the validation split."""

    sense_layers: tuple[int, ...]
    gates: Tensor
    threshold: float
    pool: int
    bias: float = 0.0
    calibration: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_artifact(cls, artifact: Artifact, chat: ChatModel) -> TokenGate:
        """The gate of another guard of the same model. Raises DataError for one of another method
        or of some tokens alone, FingerprintError for one of another model, and ValueError."""
        meta = artifact.meta
        if meta.method not in METHODS:
            raise DataError(
                f"--gate: a guard of the method {meta.method!r} has no gate that another can take "
                f"over: give one of {', '.join(METHODS)}"
            )
        if meta.settings.get("tokens", "all") != "all":
            raise DataError(
                "--gate: its gate scores some tokens alone: give the guard of a fit with --tokens "
                "all"
            )
        artifact.require_model(chat.fitted_model.fingerprint, served=chat.name)
        guard = FittedGuard(meta.concept, artifact.tensors, meta.settings)
        return cls(
            sense_layers=guard.layers("sense_layers"),
            gates=guard.array("gates", 2),
            threshold=guard.number("threshold"),
            pool=int(guard.number("pool")),
            calibration={
                name: value for name, value in meta.calibration.items() if "fired_on_prompt" in name
            }
            | {"gate_of": artifact.digest},
        )

    @classmethod
    def fitted(
        cls,
        chat: ChatModel,
        forget: Sequence[ForgetPrompt],
        retain: Sequence[RetainPrompt],
        rates: GateRates,
        *,
        seed: int = 0,
        progress: Stages,
    ) -> TokenGate:
        """One for these prompts, as `guard fit steer` makes it. Raises DataError as `fit_steer`."""
        require_rows(forget, retain, tokens=None, each_subject=False, scores_texts=True)
        rates.check(retain)
        states = read_states(chat, forget, retain, random.Random(seed), progress)
        gate, _ = fit_gate(chat, states, rates, "all")
        return cls(
            gate.layers,
            gate.gates,
            gate.threshold,
            gate.pool,
            calibration={
                "false_positive_rate": rates.far,
                "near_false_positive_rate": rates.near,
                "forget_fired_on_prompt": gate.recall,
                "far_fired_on_prompt": share_over(gate.far, gate.threshold),
                "near_fired_on_prompt": share_over(gate.near, gate.threshold),
            },
        )

    @classmethod
    def always(cls, chat: ChatModel) -> TokenGate:
        """None: every prompt scores 0 and fires, as an eraser acts that is published without."""
        return cls((0,), torch.zeros(1, chat.width), ALWAYS, 1, calibration={"gated": False})

    @property
    def settings(self) -> dict[str, Any]:
        """Those of an artifact."""
        return {
            "sense_layers": list(self.sense_layers),
            "pool": self.pool,
            "threshold": self.threshold,
        }

    def held_out(
        self, chat: ChatModel, forget: Sequence[ForgetPrompt], progress: Stages
    ) -> HeldOut:
        """The forget prompts of the validation split, with their scores."""
        rows = in_split(forget, "validation")
        prompts = [prompt_of(chat, row) for row in rows]
        layers = sorted(self.sense_layers)
        states = collect_states(chat, prompts, layers, "scoring forget prompts", progress)
        picked = [layers.index(layer) for layer in self.sense_layers]
        pooled = states.pooled(states.score(picked, self.gates) + self.bias, self.pool)
        return HeldOut(
            self.threshold,
            tuple(
                Scored(row.prompt, "forget", score)
                for row, score in zip(rows, pooled.tolist(), strict=True)
            ),
        )
