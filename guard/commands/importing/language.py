"""`guard import` for language models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from guard.commands.fit.output import (
    checked_concept,
    print_json,
    print_written,
    require_artifact_name,
)
from guard.config.schema import Dtype
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.errors import DataError
from guard.reporting import values
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.gated.imported import LanguageImport
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import TransformersChat


@dataclass(frozen=True)
class LanguageRun:
    """What is imported and behind which gate: that of the artifact `gate`, one that is fitted on
    prompts `forget` and `retain`, or with `ungated` none."""

    base: str
    concept: str
    out: Path
    forget: Path | None
    retain: Path | None
    gate: Path | None
    ungated: bool
    fpr: float
    near_fpr: float
    seed: int
    dtype: Dtype
    device: str
    as_json: bool

    def save(self, request: LanguageImport, count: int) -> Artifact:
        """Read the files, load the model, import, write the artifact and print its figures; changes
        are cut on `count` prompts of the train split. Raises DataError and ModelError."""
        about, others = self._rows()

        from guard.artifact import Artifact
        from guard.fitting.gated.imported import import_overlay
        from guard.models.chat import TransformersChat

        given_by = None if self.gate is None else Artifact.load(self.gate)
        chat = TransformersChat.load(self.base, dtype=self.dtype, device=self.device)
        started = time.monotonic()
        with stages() as progress:
            gate = self._gate(chat, given_by, about, others, progress)
            half = max(count // 2, 1)
            rows = [*in_split(about, "train")[:half], *in_split(others, "train")[:half]]
            artifact = import_overlay(
                chat,
                request,
                gate,
                [chat.prompt(row.prompt) for row in rows],
                concept=self.concept,
                progress=progress,
            )
        artifact.save(self.out)
        meta = artifact.meta
        report = {
            "method": meta.method,
            "concept": meta.concept,
            "model": meta.model.model_dump(mode="json"),
            "settings": meta.settings,
            "calibration": meta.calibration,
            "took_s": round(time.monotonic() - started, 1),
        }
        if self.as_json:
            print_json(report, self.out, artifact)
            return artifact
        console = Console()
        shown = {
            "layers": len(meta.settings["groups"]),  # type: ignore[arg-type]
            "least share kept": meta.settings.get("share", 1.0),
            **meta.calibration,
        }
        console.print(values.table("imported", shown))
        print_written(console, self.out)
        return artifact

    def _rows(self) -> tuple[list[ForgetPrompt], list[RetainPrompt]]:
        """The prompts; all that can be checked before the model is loaded, which takes longer."""
        require_artifact_name(self.out)
        checked_concept(self.concept)
        gates = [self.gate is not None, self.ungated, self.forget is not None]
        if self.ungated and self.gate is not None:
            raise DataError("--ungated has no gate: leave out --gate")
        if not any(gates):
            raise DataError(
                "give --forget and --retain, prompts on which a gate is fitted, or --gate, a guard "
                "of this model, or --ungated"
            )
        if (self.forget is None) != (self.retain is None):
            raise DataError("--forget and --retain go together: give both, or neither")
        if self.forget is None or self.retain is None:
            return [], []
        return read_rows(self.forget, ForgetPrompt), read_rows(self.retain, RetainPrompt)

    def _gate(
        self,
        chat: TransformersChat,
        given_by: Artifact | None,
        about: Sequence[ForgetPrompt],
        others: Sequence[RetainPrompt],
        progress: Stages,
    ) -> TokenGate:
        from guard.fitting.gated.token_gate import TokenGate
        from guard.fitting.steering.gate_search import GateRates

        if self.ungated:
            return TokenGate.always(chat)
        if given_by is not None:
            return TokenGate.of_artifact(given_by, chat)
        rates = GateRates(self.fpr, self.near_fpr)
        return TokenGate.fitted(chat, about, others, rates, seed=self.seed, progress=progress)
