"""A published eraser of a language model as a guard: what its checkpoint changes, as an overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.artifact import Artifact
from guard.errors import DataError
from guard.fitting.gated.artifacts import gated_artifact
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change
from guard.fitting.overlays.cutting import Energy, energies, factors_of
from guard.fitting.overlays.reading import read_difference
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages
from steering.engines.transformers.adapters.weights import decoder_linears
from steering.prompt import Prompt

RANK = 16
"""The largest rank of a layer by default; of adapters, that of their factors."""
OUTSIDE = "outside of the decoder layers"


@dataclass(frozen=True)
class LanguageImport:
    """What is imported: `source` is a file or a folder, `rank` the largest one to cut to (None: see
    `RANK`), `least_share` what each layer must keep of its change's energy. `rereads`: the prompt
    of a request on which the guard fires is read again under the overlay
    (`steering.hidden.overlays.LinearOverlay`)."""

    source: Path
    rank: int | None = None
    least_share: float = 0.9
    rereads: bool = True


def import_overlay(
    chat: TransformersChat,
    request: LanguageImport,
    gate: TokenGate,
    prompts: Sequence[Prompt],
    *,
    concept: str,
    description: str = "",
    progress: Stages,
) -> Artifact:
    """A guard that does what a checkpoint does, on the requests on which its gate fires. Changes of
    whole weights are cut in the metric of their layers' inputs on `prompts`.

    Raises DataError for a checkpoint that cannot be imported, one of which too little would be
    kept, and one that has to be cut without prompts.
    """
    base = Base({"": chat.model})
    difference = read_difference(request.source, base, None)
    linears = decoder_linears(chat.model)
    outside = [name for name in difference.changes if name not in linears]
    difference = difference.without(outside, OUTSIDE)
    if not difference.changes:
        raise DataError(
            f"{request.source}: changes no linear layer inside the decoder layers of {chat.name!r}"
        )
    # factors that are taken as they are need no more than that their layers run
    exact = request.rank is None and all(
        each.write is not None for each in difference.changes.values()
    )
    asked = [chat.prompt(concept)] if exact else prompts
    if not asked:
        raise DataError(
            f"{request.source}: what it changes has to be cut to a rank, on prompts that the model "
            "is asked: give --forget and --retain"
        )
    recorded = _recorded(chat, base, difference.changes, asked, progress)
    difference = difference.run(recorded, request.source)
    factors = factors_of(difference.changes, recorded, request.rank, RANK)
    factors.require_kept(request.least_share)
    settings = {
        "rereads": request.rereads,
        "source": request.source.name,
        "layout": difference.layout,
        "dropped": {kind: list(names) for kind, names in difference.dropped.items()},
        **factors.settings(),
    }
    return gated_artifact(
        "language-overlay",
        chat,
        gate,
        settings,
        factors.tensors(),
        gate.calibration,
        concept=concept,
        description=description,
    )


def _recorded(
    chat: TransformersChat,
    base: Base,
    changes: Mapping[str, Change],
    prompts: Sequence[Prompt],
    progress: Stages,
) -> Mapping[str, Energy]:
    """What the changes would add while the bare model reads prompts."""
    advance = progress("recording states", len(prompts))
    with energies(base, changes) as recorded:
        for _ in chat.states(prompts, [chat.depth - 1], advance):
            pass
    return recorded
