"""From a fit to artifacts: one for the whole set, or one for each subject."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from guard.artifact import Artifact, ArtifactMeta, FittedModel, version_of
from guard.errors import ArtifactError
from guard.fitting.steering.directions import SCHEDULE
from guard.fitting.steering.fit import SteerFit
from guard.fitting.steering.subjects import subject_guards
from guard.models.chat import ChatModel


def to_artifact(fit: SteerFit, chat: ChatModel, *, concept: str, description: str = "") -> Artifact:
    """The artifact of a fit with one guard. Raises ArtifactError for an invalid name."""
    about = _About(concept, description, chat.fitted_model)
    return _artifact(fit, about, fit.guard.gates, fit.gate.threshold, fit.recheck)


def to_artifacts(
    fit: SteerFit, chat: ChatModel, *, concept: str, description: str = ""
) -> Mapping[str, Artifact]:
    """The artifacts of a fit with one guard for each subject, by a name of letters, digits and
    hyphens for each. Raises ArtifactError for an invalid name."""
    assert fit.subjects is not None
    require_file_names(fit.subjects.names)
    artifacts: dict[str, Artifact] = {}
    model = chat.fitted_model
    for guard, threshold, recheck in subject_guards(fit.subjects, fit.guard):
        name = file_name(guard.name)
        about = _About(f"{concept}/{name}", description, model)
        artifacts[name] = _artifact(fit, about, guard.gates, threshold, recheck)
    return artifacts


def require_file_names(subjects: Iterable[str]) -> None:
    """Raise ArtifactError for two subjects that would be one file."""
    names: dict[str, str] = {}
    for subject in dict.fromkeys(subjects):
        other = names.setdefault(file_name(subject), subject)
        if other != subject:
            raise ArtifactError(
                f"two subjects are named {file_name(subject)!r} as files: write {subject!r} in "
                "another way"
            )


def file_name(subject: str) -> str:
    """A subject as a part of a file's name, and of a guard's: "Véra Lindgren" is "vera-lindgren".

    Configurations take letters of ASCII; a name in other letters is a part of its digest.
    """
    bare = unicodedata.normalize("NFKD", subject.lower()).encode("ascii", "ignore").decode()
    name = re.sub(r"[\W_]+", "-", bare).strip("-")
    return name or f"x{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


class _About(NamedTuple):
    """What an artifact is of, and the model that it is for."""

    concept: str
    description: str
    model: FittedModel


def _artifact(
    fit: SteerFit, about: _About, gates: Tensor, threshold: float, recheck: float | None
) -> Artifact:
    settings: dict[str, Any] = {
        "sense_layers": list(fit.guard.sense_layers),
        "act_layers": list(fit.guard.act_layers),
        "pool": fit.guard.pool,
        "rest": fit.guard.rest,
        "schedule": list(SCHEDULE),
        "threshold": threshold,
        "recheck": recheck,
        "strength": fit.strength,
    }
    # left out where they say nothing, so that releases that do not know them read the artifact
    if fit.guard.tokens != "all":
        settings["tokens"] = fit.guard.tokens
    try:
        meta = ArtifactMeta(
            schema_version=version_of(settings, None),
            method="steer",
            concept=about.concept,
            description=about.description,
            created=date.today(),
            model=about.model,
            seams=("hidden",),
            settings=settings,
            calibration=fit.calibration,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{where}: {first['msg']}") from error
    # the first step of the schedule is the direction itself
    tensors = {"gates": gates.numpy(), "directions": fit.guard.directions[0].numpy()}
    return Artifact(meta, tensors)
