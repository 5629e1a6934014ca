"""Fitting closed-form erasers of the denoiser as low-rank overlays, weights untouched.

A method says which prompts it sums over and with which weights (`uce.py`, `rece.py`, `trce.py`,
`realera.py`); recording the states, solving, cutting the edit to a rank, and the gate are the same
for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.closed_form.rounds import JudgedRounds
from guard.fitting.images.closed_form.solver import Cut, Edit, gram, low_rank
from guard.fitting.images.closed_form.states import PromptStates, ReplacedTokens, Tokens
from guard.fitting.images.training_free import EncodedConcept, perhaps_gated
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.seams.projections import text_projections

Tensors = dict[str, Any]


class Sums(Protocol):
    """The sums of one group of layers. States that are kept come first, then those replaced."""

    def keep(self, tokens: Tokens) -> None:
        """Add tokens to be kept."""

    def erase(self, tokens: ReplacedTokens) -> None:
        """Add tokens to be erased."""

    def edits(self, gram: Tensor) -> Sequence[Edit]:
        """The edits to choose among, the mildest first; `gram` is `Σ WᵀW` of the layers."""


class ClosedForm(Protocol):
    """A closed-form eraser with its settings: `method` is its name in the table of methods."""

    @property
    def method(self) -> str: ...

    def replaced(self, concept: Concept) -> Sequence[tuple[str, str]]:
        """Prompts with the concept, each with the one that replaces it."""

    def kept(self, concept: Concept, prompts: Sequence[str]) -> Sequence[str]:
        """The prompts to keep; `prompts` are ordinary ones."""

    def sums(self, width: int) -> Sums: ...

    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class OverlayRequest:
    """What the overlay may be: its rank at most, and the share of the edit that it must keep.

    `preserved` are further phrases to keep, those of other concepts; `prompts` ordinary ones.
    """

    rank: int = 64
    least_share: float = 0.9
    preserved: Sequence[str] = ()
    prompts: Sequence[str] = ()


@dataclass(frozen=True)
class _Candidate:
    tensors: Tensors
    shares: Mapping[str, float]


def fit_closed_form(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    eraser: ClosedForm,
    request: OverlayRequest,
    progress: Stages,
    judged: JudgedRounds | None = None,
) -> Artifact:
    """The guard of an eraser; it has a gate if `encoded` is given.

    Of an eraser with several rounds, the one with the fewest leaks is taken where they are
    `judged`, the first of equals; otherwise the last one. Raises ModelError if the model's
    projections cannot be overlaid; DataError if the edit would change nothing, the cut keeps too
    little of it, a phrase is to be both erased and kept, or the held-out prompts are too few for
    the rates.
    """
    try:
        layers = text_projections(image_model.family.cross_attention())
    except ValueError as error:
        raise ModelError(f"model {image_model.name!r}: {error}") from error
    recorder = PromptStates(image_model)
    edits = _edits(recorder, layers, concept, eraser, request, progress)
    candidates = [_cut(edit, recorder, layers, eraser, request) for edit in edits]
    shared = {
        "strength": 1.0,
        "streams": list(image_model.encode([""]).states),
        "groups": {group: list(names) for group, names in recorder.groups.items()},
    }
    chosen, leaks = len(candidates) - 1, []
    if judged is not None:
        leaks = [
            judged.leaks(eraser.method, candidate.tensors, shared, progress)
            for candidate in candidates
        ]
        chosen = leaks.index(min(leaks))
    tensors, shares = candidates[chosen].tensors, candidates[chosen].shares
    if (lost := min(shares.values())) < request.least_share:
        raise DataError(
            f"{request.rank} directions keep {lost:.1%} of the edit, less than "
            f"{request.least_share:.0%}: give a higher --rank, or a lower --least-share"
        )
    settings = shared | eraser.settings() | {"share": min(shares.values()), "shares": dict(shares)}
    if len(candidates) > 1:
        settings |= {"rounds": chosen + 1, "leaks": leaks}
    # the edit is one of their outputs
    settings["encoders"] = image_model.fitted_model().fingerprint
    model = image_model.fitted_denoiser()
    return perhaps_gated(
        eraser.method, "projection", model, concept, encoded, rates, tensors, settings
    )


def _edits(
    recorder: PromptStates,
    layers: Mapping[str, nn.Linear],
    concept: Concept,
    eraser: ClosedForm,
    request: OverlayRequest,
    progress: Stages,
) -> list[dict[str, Edit]]:
    """The edits of each round, by group."""
    replaced = eraser.replaced(concept)
    kept = [*dict.fromkeys([*eraser.kept(concept, request.prompts), *request.preserved])]
    erased, steads = [text for text, _ in replaced], [stead for _, stead in replaced]
    if both := sorted({*erased} & {*request.preserved}):
        raise DataError(f"{both[0]!r} is a phrase of {concept.name}, and cannot be preserved too")
    sums = {group: eraser.sums(width) for group, width in recorder.widths.items()}
    advance = progress("recording states", len(kept) + len(erased))
    for count, tokens in recorder.tokens(kept):
        for group, group_sums in sums.items():
            group_sums.keep(tokens[group])
        advance(count)
    for count, pairs in recorder.replaced(erased, steads):
        for group, group_sums in sums.items():
            group_sums.erase(pairs[group])
        advance(count)
    by_group = {
        group: group_sums.edits(gram([layers[name].weight.detach() for name in names]))
        for (group, names), group_sums in zip(recorder.groups.items(), sums.values(), strict=True)
    }
    rounds = zip(*by_group.values(), strict=True)
    return [dict(zip(by_group, edits, strict=True)) for edits in rounds]


def _cut(
    edits: Mapping[str, Edit],
    recorder: PromptStates,
    layers: Mapping[str, nn.Linear],
    eraser: ClosedForm,
    request: OverlayRequest,
) -> _Candidate:
    tensors: Tensors = {}
    shares = {}
    for group, edit in edits.items():
        cut = _low_rank(edit, eraser, request)
        shares[group] = cut.share
        tensors[f"reads.{group}"] = cut.reads.float().numpy()
        for name in recorder.groups[group]:
            writes = (layers[name].weight.detach().cpu().double() @ cut.lift).T
            tensors[f"writes.{name}"] = writes.float().numpy()
    return _Candidate(tensors, shares)


def _low_rank(edit: Edit, eraser: ClosedForm, request: OverlayRequest) -> Cut:
    try:
        return low_rank(edit, request.rank)
    except ValueError as error:
        instead = eraser.settings()["instead"]
        raise DataError(f"{error}: give another --instead than {instead!r}") from error
