"""The gate of an image guard taken from a CGCE guard: its classifiers, in place of a linear score.

Both read the text encoder's states; the classifiers attend to tokens and are trained against
hard negatives and attacks, the linear score is a mean over the prompt.
"""

from __future__ import annotations

from classifiers.heads import PARTS
from guard.artifact import Artifact, ArtifactMeta
from guard.errors import ArtifactError
from guard.fitting.images.cgce import DESCENT_FIGURES
from steering.methods.prompt_score import HEADS

CLASSIFIERS = "cgce"
"""The method whose guards have classifiers."""


def gated_by(artifact: Artifact, classifiers: Artifact) -> Artifact:
    """The same guard behind the classifiers of another one, with their threshold: it acts on the
    prompts on which that one fires. Raises ArtifactError where one of the two is no such guard, or
    they are of two concepts or two text encoders."""
    meta, gate = artifact.meta, classifiers.meta
    if not isinstance(meta.settings.get("gated"), bool):
        raise ArtifactError(
            f"guards of method {meta.method!r} have no gate that could be another: give an "
            "overlay or a guard by guidance of an image model"
        )
    if gate.method != CLASSIFIERS:
        raise ArtifactError(
            f"the gate is of method {gate.method!r}, which has no classifiers: give an artifact of "
            "`guard fit cgce`"
        )
    if gate.concept != meta.concept:
        raise ArtifactError(
            f"the guard is for {meta.concept!r}, its gate for {gate.concept!r}: give one for the "
            "same concept"
        )
    encoders = meta.settings.get("encoders", meta.model.fingerprint)
    if gate.model.fingerprint != encoders:
        raise ArtifactError(
            f"the gate was fitted on the text encoders of {gate.model.name!r}, which are others "
            f"than the guard's: fit it on {meta.model.name!r}"
        )
    own = {
        name: values
        for name, values in artifact.tensors.items()
        if name.partition(".")[0] not in {"weights", *PARTS}
    }
    heads = {
        name: values
        for name, values in classifiers.tensors.items()
        if name.partition(".")[0] in PARTS
    }
    # of the linear score: its bias, and up to where an overlay's strength follows it
    linear = {"bias", "full_score"}
    settings = {key: value for key, value in meta.settings.items() if key not in linear} | {
        "gated": True,
        "gate": HEADS,
        "gate_streams": gate.settings["streams"],
        "gate_digest": classifiers.digest,
        "threshold": gate.settings["threshold"],
    }
    calibration = {k: v for k, v in gate.calibration.items() if k not in DESCENT_FIGURES}
    fields = {"settings": settings, "calibration": calibration, "tensors_sha256": ""}
    return Artifact(ArtifactMeta.model_validate(meta.model_dump() | fields), own | heads)
