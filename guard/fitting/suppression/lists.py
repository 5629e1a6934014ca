"""Suppression lists as artifacts: made, grown by names, and shrunk, without a fit of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from guard.artifact import Artifact, ArtifactMeta
from guard.errors import ArtifactError, DataError
from guard.fitting.erasure.profile import Profile
from guard.fitting.erasure.profiling import profile_of
from guard.fitting.steering.artifacts import file_name
from guard.fitting.steering.directions import REST, SCHEDULE
from guard.fitting.suppression.evaluation import fired_of
from guard.fitting.suppression.fit import (
    Gates,
    ListRates,
    Thresholds,
    calibrated,
    fit_gates,
    list_of,
    recalibrated,
)
from guard.fitting.suppression.strangers import Strangers, strangers_of
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.suppression_list import MOST_ENTRIES

METHOD = "suppression-list"
GROWN = 2
"""A list of so many times the names of its last calibration is calibrated anew."""


@dataclass(frozen=True)
class Entry:
    """A name of a list, and the `id` that verdicts call it by; several names can have one id."""

    name: str
    id: str

    @classmethod
    def of(cls, name: str, id: str = "") -> Entry:
        """With an id made of the name where there is none. Raises DataError for one that is no
        name of letters, digits, dots and hyphens."""
        chosen = id or file_name(name)
        if not all(part.isalnum() for part in chosen.replace(".", "-").split("-")):
            raise DataError(
                f"the id {chosen!r} of {name!r} is no word of letters, digits, dots and hyphens"
            )
        return cls(name, chosen)


class SuppressionLists:
    """Makes and changes the lists of one model."""

    def __init__(self, chat: ChatModel, progress: Stages) -> None:
        self._chat, self._progress = chat, progress
        self._profile: Profile = profile_of(chat, progress)
        self._strangers: Strangers = strangers_of(chat, self._profile, progress)

    def made(self, entries: Sequence[Entry], concept: str, rates: ListRates) -> Artifact:
        """A new list. Raises DataError for too many entries."""
        _require_room(len(entries))
        names = [entry.name for entry in entries]
        gates = self._fitted(names)
        thresholds = calibrated(
            self._chat, self._profile, self._strangers, gates, names, rates, self._progress
        )
        return self.of(gates, [entry.id for entry in entries], concept, thresholds)

    def grown(self, artifact: Artifact, entries: Sequence[Entry]) -> Artifact:
        """The list with more entries, calibrated anew where it has grown much. Raises DataError
        for too many entries, and for a list of another model or another profile."""
        ids, gates = self._of(artifact)
        _require_room(len(ids) + len(entries))
        names = [entry.name for entry in entries]
        more = Gates.joined([gates, self._fitted(names)])
        known = artifact.meta.calibration
        thresholds = _thresholds(artifact)
        if len(more.bias) >= GROWN * int(str(known["names"])):
            thresholds = recalibrated(self._profile, self._strangers, more, thresholds)
        every = [*ids, *(entry.id for entry in entries)]
        return self.of(more, every, artifact.meta.concept, thresholds)

    def figures(self, artifact: Artifact, names: Sequence[str]) -> dict[str, str]:
        """How often the list fires on prompts that name one of `names`, in wordings that no fit
        has, on others who share a part of the name, on strangers and on innocent topics."""
        fired = fired_of(
            self._chat, self._profile, self._strangers, artifact, names, self._progress
        )
        return {f"fired_{kind}": str(share) for kind, share in fired.items()}

    def _fitted(self, names: Sequence[str]) -> Gates:
        return fit_gates(self._chat, self._profile, self._strangers, names, self._progress)

    def _of(self, artifact: Artifact) -> tuple[list[str], Gates]:
        meta, chat = artifact.meta, self._chat
        if meta.model.fingerprint != chat.fitted_model.fingerprint:
            raise DataError(
                f"the list is of {meta.model.name}, and {chat.name} has other weights: make one "
                "for it"
            )
        gates = _gates(artifact)
        fresh = list_of("list", self._profile, self._strangers, gates, radius=1.0)
        if not torch.equal(fresh.projection, torch.from_numpy(artifact.tensors["projection"])):
            raise DataError("the list is of another profile of this model: make it anew")
        return slots_of(artifact), gates

    def of(
        self, gates: Gates, ids: Sequence[str], concept: str, thresholds: Thresholds
    ) -> Artifact:
        """The artifact of fitted gates with the ids of their entries."""
        fitted = list_of("list", self._profile, self._strangers, gates, thresholds.radius)
        settings: dict[str, Any] = {
            "sense_layers": list(fitted.sense_layers),
            "act_layers": list(fitted.act_layers),
            "rest": REST,
            "schedule": list(SCHEDULE),
            "threshold": thresholds.level,
            "recheck": thresholds.recheck,
            "radius": thresholds.radius,
            "strength": self._profile.about.strength,
            "entries": list(ids),
        }
        try:
            meta = ArtifactMeta(
                method=METHOD,
                concept=concept,
                created=date.today(),
                model=self._chat.fitted_model,
                seams=("hidden",),
                settings=settings,
                calibration=dict(thresholds.figures),
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"{where}: {first['msg']}") from error
        tensors = {
            "gates": fitted.gates,
            "bias": fitted.bias,
            "centres": fitted.centres,
            "projection": fitted.projection,
            "directions": self._profile.directions,
        }
        return Artifact(meta, {name: tensor.numpy() for name, tensor in tensors.items()})


def entries_of(artifact: Artifact) -> list[str]:
    """The ids of a list's entries, in order. Raises DataError for an artifact that is no list."""
    return [each for each in slots_of(artifact) if each]


def slots_of(artifact: Artifact) -> list[str]:
    """The ids by the numbers of entries, empty for those that were taken off. Raises as
    `entries_of`."""
    ids = artifact.meta.settings.get("entries")
    if artifact.meta.method != METHOD or not isinstance(ids, list):
        raise DataError(f"is a guard of the method {artifact.meta.method!r}: no suppression list")
    return [str(each) for each in ids]


def shrunk(artifact: Artifact, ids: Sequence[str], *, empty: bool = False) -> Artifact:
    """The list without all entries of these ids; thresholds stay, and so do the numbers of other
    entries, by which requests know them that are running. Raises DataError for an id that it does
    not have, and where no entry would be left, unless it may be `empty`: it never fires then."""
    slots = slots_of(artifact)
    if lost := [each for each in ids if not each or each not in slots]:
        raise DataError(f"has no entry {lost[0]!r}")
    gone = [i for i, each in enumerate(slots) if not each or each in set(ids)]
    if len(gone) == len(slots) and not empty:
        raise DataError("no entry would be left: take the list out of its policies instead")
    tensors = {name: values.copy() for name, values in artifact.tensors.items()}
    # a score that is never over a threshold
    tensors["gates"][gone], tensors["bias"][gone] = 0.0, -1.0
    entries = ["" if i in set(gone) else each for i, each in enumerate(slots)]
    settings = {**artifact.meta.settings, "entries": entries}
    meta = artifact.meta.model_copy(update={"settings": settings, "tensors_sha256": ""})
    return Artifact(meta, tensors)


def _gates(artifact: Artifact) -> Gates:
    tensors: dict[str, Tensor] = {
        name: torch.from_numpy(artifact.tensors[name]) for name in ("gates", "bias", "centres")
    }
    return Gates(**tensors)


def _thresholds(artifact: Artifact) -> Thresholds:
    settings = artifact.meta.settings
    figures: dict[str, Any] = dict(artifact.meta.calibration)
    level, recheck, radius = (
        float(str(settings[name])) for name in ("threshold", "recheck", "radius")
    )
    return Thresholds(level, recheck, radius, figures)


def _require_room(count: int) -> None:
    if count > MOST_ENTRIES:
        raise DataError(
            f"a list takes {MOST_ENTRIES} entries at most, not {count}: make two lists, a policy "
            "can have both"
        )
