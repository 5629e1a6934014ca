"""The shipped screen of nudity in images: the two logits of Open-NSFW, and a threshold.

    guard models add open-nsfw
    python -m examples.screens.nudity --out nudity.safetensors

Its score is the probability that Open-NSFW gives. Nothing of the network is in the artifact.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from classifiers.embeddings.heads import EmbeddingHead
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.plans.image_screens import encoder_card

THRESHOLD = 0.8
"""From which on an image is most likely pornographic, as Yahoo says of the network's scores."""
FITTED = date(2026, 11, 30)


def nudity() -> Artifact:
    """The artifact, bound to the added encoder. Raises ModelError where that is not there."""
    card = encoder_card("open-nsfw")
    weight = np.array([[-1, 1]], np.float32)
    head = EmbeddingHead("logistic", {"weight": weight, "bias": np.zeros(1, np.float32)})
    meta = ArtifactMeta(
        method="image-screen",
        concept="image/nudity",
        description="pornographic images, as Yahoo's Open-NSFW scores them",
        created=FITTED,
        model=FittedModel(
            name=card.name,
            architecture=card.architecture,
            fingerprint=card.fingerprint,
            layers=1,
            width=card.width,
        ),
        seams=("pixels",),
        settings=head.settings() | {"threshold": THRESHOLD},
        calibration={"threshold": "as published with the network, not calibrated here"},
    )
    return Artifact(meta, head.tensors())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    nudity().save(parser.parse_args().out)
