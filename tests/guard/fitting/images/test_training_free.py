"""Guards in closed form, fitted on an encoder whose words can be read by eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import pytest
import torch

from guard.artifact import Artifact, FittedModel
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.images.training_free import (
    EncodedConcept,
    encode_concept,
    fit_guide,
    fit_nearest,
    fit_safree,
    subspaces,
)
from guard.fitting.prompts.concept_prompts import LabelledPrompt, prompts_of
from guard.fitting.prompts.rates import PromptRates
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank, EmbeddingGuards
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard

TOKENS, WIDTH = 24, 32
MEANT = {"knife", "blade", "dagger", "cleaver"}
CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": {
            "train": ["a knife", "a sharp knife", "a blade", "a long blade"],
            "validation": ["a dagger", "a cleaver"],
        },
        "hard_negatives": [f"a {word} edge" for word in ("cliff", "bed", "table", "lake")]
        + ["a jack", "a dive"],
        "replacements": ["a spoon", "a fork"],
    }
)
RATES = PromptRates(0.005, 0.03)


class WordModel:
    """A token a word, its state a random vector of its own; words that mean the concept share half
    of theirs. A stream of the mean stands beside it."""

    def __init__(self, *, tokens: bool = True) -> None:
        self._tokens = tokens

    def encode(self, prompts: Sequence[str], stages: object = None) -> Conditioning:
        states = torch.zeros(len(prompts), TOKENS, WIDTH)
        masks = torch.zeros(len(prompts), TOKENS, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            words = ["<s>", *prompt.replace(",", " ").split()][:TOKENS]
            states[row, : len(words)] = torch.stack([state_of(word) for word in words])
            masks[row, : len(words)] = True
        mean = (states.sum(1) / masks.sum(1, keepdim=True))[:, None]
        one = torch.ones(len(prompts), 1, dtype=torch.bool)
        if not self._tokens:
            return Conditioning({"pooled": mean}, {"pooled": one})
        return Conditioning({"text": states, "pooled": mean}, {"text": masks, "pooled": one})

    def fitted_model(self) -> FittedModel:
        return FittedModel(
            name="words", architecture="Words", fingerprint="f" * 64, layers=1, width=WIDTH
        )


@cache
def state_of(word: str) -> torch.Tensor:
    """The state of a word, wherever it stands."""
    state = torch.randn(WIDTH, generator=torch.Generator().manual_seed(crc32(word.encode())))
    if word in MEANT:
        state = state + 2.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    return state + 3.0


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


def image_model(*, tokens: bool = True) -> Any:
    return WordModel(tokens=tokens)


def plain(prompts: Sequence[LabelledPrompt]) -> list[LabelledPrompt]:
    """Without disguised words, which this encoder cannot know."""
    return [p for p in prompts if not p.unsafe or MEANT & set(p.text.replace(",", "").split())]


@pytest.fixture(scope="module")
def encoded() -> EncodedConcept:
    return encode_concept(image_model(), CONCEPT, plain(prompts_of(CONCEPT, 100)), silent)


def safree_of(encoded: EncodedConcept) -> Artifact:
    return fit_safree(image_model(), CONCEPT, encoded, RATES, rank=3, sense_rank=1, alpha=0.0)


def nearest_of(encoded: EncodedConcept) -> Artifact:
    return fit_nearest(image_model(), CONCEPT, encoded, RATES, rank=3, anchors=50, seed=0)


def gated_of(encoded: EncodedConcept) -> Artifact:
    return fit_guide(
        image_model(), CONCEPT, encoded, RATES, method="negative-prompt", phrase="a knife"
    )


FITS: dict[str, Callable[[EncodedConcept], Artifact]] = {
    "safree": safree_of,
    "nearest": nearest_of,
    "negative-prompt": gated_of,
}


def screen_of(artifact: Artifact) -> EmbeddingGuards:
    guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    return METHODS[artifact.meta.method].stacked([guard], "cpu")


def threshold_of(artifact: Artifact) -> float:
    return float(cast(float, artifact.meta.settings["threshold"]))


@pytest.mark.parametrize("method", FITS)
def test_a_fitted_guard_fires_on_unseen_words_and_stays_silent_on_other_things(
    method: str, encoded: EncodedConcept, tmp_path: Path
) -> None:
    FITS[method](encoded).save(tmp_path / "g.safetensors")
    artifact = Artifact.load(tmp_path / "g.safetensors")
    assert artifact.meta.method == method and artifact.meta.concept == "object/knife"
    unsafe = ["a dagger", "a picture of a cleaver", "a boat and a dagger", "a dagger on the left"]
    safe = ["a boat", "a picture of a spoon", "a lake edge and a hat", "", "a river at the top"]
    bank = EmbeddingBank([screen_of(artifact)])
    text = WordModel().encode(unsafe + safe)
    rows = [[RowGuard("g", threshold_of(artifact), 1.0)]] * len(unsafe + safe)
    applied = bank.apply(text, rows)
    assert [row["g"].fired for row in applied.readings] == [True] * 4 + [False] * 5
    for name, states in text.states.items():
        assert torch.equal(applied.text.states[name][4:], states[4:])
        acts = method != "negative-prompt"
        assert torch.equal(applied.text.states[name][:4], states[:4]) is not acts


@pytest.mark.parametrize("method", FITS)
def test_the_threshold_keeps_the_rates_on_held_out_prompts(
    method: str, encoded: EncodedConcept
) -> None:
    artifact = FITS[method](encoded)
    scores = screen_of(artifact).sense(encoded.held_out)[:, 0]
    over = {
        kind: float(
            (scores[[own == kind for own in encoded.kinds]] > threshold_of(artifact)).float().mean()
        )
        for kind in ("far", "near", "unsafe")
    }
    assert over["far"] <= RATES.far and over["near"] <= RATES.near
    assert over["unsafe"] == pytest.approx(cast(float, artifact.meta.calibration["recall"]))
    assert over["unsafe"] > 0.6


def test_the_subspace_contains_the_phrases_and_starts_with_their_common_part(
    encoded: EncodedConcept,
) -> None:
    bases, centres = subspaces(encoded, 3)
    assert {name: tuple(basis.shape) for name, basis in bases.items()} == {
        "text": (3, WIDTH),
        "pooled": (3, WIDTH),
    }
    shared = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    first = bases["text"][0]
    assert abs(float(first @ shared)) / float(shared.norm()) > 0.8
    torch.testing.assert_close(bases["text"] @ bases["text"].T, torch.eye(3), atol=1e-5, rtol=0)
    assert abs(float(centres["text"].mean()) - 3.0) < 0.5


def test_safrees_filter_is_centred_between_prompts_with_and_without_the_concept(
    encoded: EncodedConcept,
) -> None:
    artifact = safree_of(encoded)
    screen = screen_of(artifact)
    middle, slope = (float(cast(float, artifact.meta.settings[k])) for k in ("middle", "slope"))
    low, high = (float(screen.sense(text).mean()) for text in (encoded.safe, encoded.unsafe))
    assert low < middle < high
    assert slope * (high - middle) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("method", ["safe-guidance", "negative-prompt"])
def test_without_a_gate_no_prompts_are_needed_and_every_row_fires(method: str) -> None:
    preset = "strong" if method == "safe-guidance" else None
    artifact = fit_guide(
        image_model(), CONCEPT, None, RATES, method=method, phrase="a blade", preset=preset
    )
    assert artifact.meta.seams == ("guidance",) and not artifact.meta.calibration
    screen: Any = screen_of(artifact)
    assert (screen.sense(WordModel().encode(["a boat", ""])) > threshold_of(artifact)).all()
    text = WordModel().encode(["a blade"])
    for name, states in text.states.items():
        assert torch.equal(screen.conditions.states[name], states)
        assert torch.equal(screen.conditions.masks[name], text.masks[name])
    if preset:
        assert artifact.meta.settings["scale"] == 2000.0


def test_rates_that_need_more_prompts_are_refused(encoded: EncodedConcept) -> None:
    with pytest.raises(DataError, match="held-out prompts are not sufficient: .* needs 9999"):
        fit_nearest(
            image_model(), CONCEPT, encoded, PromptRates(1e-4, 0.03), rank=1, anchors=5, seed=0
        )


def test_safree_needs_token_states() -> None:
    prompts = plain(prompts_of(CONCEPT, 100))
    encoded = encode_concept(image_model(tokens=False), CONCEPT, prompts, silent)
    with pytest.raises(DataError, match="SAFREE needs an encoder with token states"):
        fit_safree(
            image_model(tokens=False), CONCEPT, encoded, RATES, rank=3, sense_rank=1, alpha=0.0
        )
    nearest_of(encoded)


def test_a_train_split_without_unsafe_prompts_is_refused() -> None:
    safe = [prompt for prompt in prompts_of(CONCEPT, 100) if not prompt.unsafe]
    with pytest.raises(DataError, match="no unsafe or no safe"):
        encode_concept(image_model(), CONCEPT, safe, silent)
