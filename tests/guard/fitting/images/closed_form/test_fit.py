"""UCE fitted on tiny pipelines: against weights edited by the paper's equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.closed_form.fit import ClosedForm, OverlayRequest, fit_closed_form
from guard.fitting.images.closed_form.realera import RealEra
from guard.fitting.images.closed_form.rece import Rece
from guard.fitting.images.closed_form.states import PromptStates
from guard.fitting.images.closed_form.trce import Trce
from guard.fitting.images.closed_form.uce import Uce, kept_phrases
from guard.fitting.images.training_free import encode_concept
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import text_projections
from steering.fingerprint import fingerprint
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS, gated_overlays
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.steering.engines.diffusion import tiny

CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": {"train": ["a knife", "knife on the table"]},
        "hard_negatives": ["a cat", "a dog", "cat", "dog", "a cat and a dog", "a red table"],
        "replacements": ["a banana"],
    }
)
RATES = PromptRates(0.5, 0.5)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


def model_of(family: Family) -> ImageModel:
    return ImageModel(family, name="tiny", architecture=type(family.pipeline).__name__)


def fitted(family: Family, eraser: ClosedForm, **request: Any) -> Artifact:
    overlay = OverlayRequest(**request)
    return fit_closed_form(model_of(family), CONCEPT, None, RATES, eraser, overlay, silent)


@cache
def built(name: str) -> Family:
    return tiny.built(name)


def deltas(artifact: Artifact) -> dict[str, Tensor]:
    guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    (overlay,) = gated_overlays.stack([guard]).overlays
    return {
        name: overlay.writes[name].T @ overlay.reads[group]
        for group, names in overlay.groups.items()
        for name in names
    }


def test_the_overlay_is_the_papers_edit_of_the_weights() -> None:
    family = built("stable diffusion")
    before = tiny.weights_hash(family.pipeline)
    edit = Uce(instead="a banana", keep=0.2, ridge=0.05)
    artifact = fitted(family, edit)
    assert tiny.weights_hash(family.pipeline) == before
    text = family.encode([*CONCEPT.phrases.train, *kept_phrases(CONCEPT), "a banana"])
    states, masks = text.states["text"].double(), text.masks["text"]
    erased = len(CONCEPT.phrases.train)
    stead = states[-1][masks[-1]]
    for name, layer in text_projections(family.cross_attention()).items():
        weight = layer.weight.detach().double()
        left, right = 0.05 * weight, 0.05 * torch.eye(16).double()
        for row in range(len(states) - 1):
            tokens = states[row][masks[row]]
            for place, c in enumerate(tokens):
                if row < erased:
                    own = (
                        stead[-1] if place == len(tokens) - 1 else stead[min(place, len(stead) - 1)]
                    )
                    left = left + torch.outer(weight @ own, c)
                    right = right + torch.outer(c, c)
                else:
                    left = left + 0.2 * torch.outer(weight @ c, c)
                    right = right + 0.2 * torch.outer(c, c)
        expected = left @ torch.linalg.inv(right) - weight
        got = deltas(artifact)[name].double()
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert artifact.meta.settings["share"] == pytest.approx(1.0)


def test_the_metadata_of_an_artifact() -> None:
    family = built("stable diffusion")
    artifact = fitted(family, Uce(), rank=1, least_share=0.0)
    meta = artifact.meta
    assert (meta.method, meta.seams, meta.calibration) == ("uce", ("projection",), {})
    assert meta.model.fingerprint == fingerprint(family.denoiser)
    encoders = fingerprint(torch.nn.ModuleDict(dict(family.encoders)))
    assert meta.settings["encoders"] == encoders
    assert (meta.settings["gated"], meta.settings["threshold"]) == (False, 0.0)
    # all layers read the same: one matrix is enough
    groups = cast(dict[str, list[str]], meta.settings["groups"])
    assert [len(names) for names in groups.values()] == [8]
    assert artifact.tensors["reads.0"].shape == (1, 16)
    assert 0.0 < cast(float, meta.settings["share"]) < 1.0


@pytest.mark.parametrize(
    ("name", "groups"), [("emoji", 1), ("stable diffusion xl", 1), ("pixart", 1), ("wan", 1)]
)
def test_every_family_that_attends_to_the_text_alone_has_one_group(name: str, groups: int) -> None:
    artifact = fitted(built(name), Uce())
    assert len(cast(Any, artifact.meta.settings["groups"])) == groups


@pytest.mark.parametrize(
    ("name", "groups"),
    [("stable diffusion 3", 2), ("stable diffusion 3 without t5", 2), ("flux", 1)],
)
def test_with_joint_attention_every_block_has_a_group(name: str, groups: int) -> None:
    artifact = fitted(built(name), Uce("a banana"))
    found = cast(dict[str, list[str]], artifact.meta.settings["groups"])
    assert [len(names) for names in found.values()] == [2] * groups
    assert all(bool(delta.any()) for delta in deltas(artifact).values())


def test_kept_phrases_are_all_that_are_not_the_concept() -> None:
    kept = kept_phrases(CONCEPT)
    assert kept[0] == "" and {"a banana", "a red table", "a tree"} <= {*kept}
    assert len({*kept}) == len(kept) and not {*kept} & {*CONCEPT.phrases.train}


def test_a_model_that_cannot_be_overlaid_is_refused() -> None:
    family = tiny.built("emoji")
    family.denoiser.fuse_qkv_projections()
    with pytest.raises(ModelError, match="model 'tiny': .*fused projections"):
        fitted(family, Uce())


def test_an_overlay_that_keeps_too_little_of_the_edit_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 directions keep \d+\.\d% of the edit, less than 90%"):
        fitted(built("emoji"), Uce(), rank=1)
    settings = fitted(built("emoji"), Uce(), rank=1, least_share=0.0).meta.settings
    assert settings["shares"] == {"0": settings["share"]}


def moved(artifact: Artifact, text: str) -> float:
    """How far an overlay moves what the projections make of a prompt, as a share."""
    family = built("stable diffusion")
    encoded = family.encode([text])
    states = encoded.states["text"][encoded.masks["text"]]
    shares = [
        float((states @ deltas(artifact)[name].T).norm() / (states @ layer.weight.T).norm())
        for name, layer in text_projections(family.cross_attention()).items()
    ]
    return sum(shares) / len(shares)


def test_phrases_that_are_preserved_move_less() -> None:
    family, phrase = built("stable diffusion"), "red knife"
    assert phrase not in kept_phrases(CONCEPT)
    plain = fitted(family, Uce("a banana", keep=10.0))
    kept = fitted(family, Uce("a banana", keep=10.0), preserved=(phrase,))
    assert moved(kept, phrase) < 0.8 * moved(plain, phrase)


def test_a_phrase_of_the_concept_cannot_be_preserved() -> None:
    with pytest.raises(DataError, match="'a knife' is a phrase of object/knife"):
        fitted(built("emoji"), Uce(), preserved=("a knife",))


ERASERS: dict[str, ClosedForm] = {
    "uce": Uce("a banana"),
    "rece": Rece(Uce("a banana"), rounds=2),
    "trce": Trce("a banana"),
    "realera": RealEra(Uce("a banana"), directions=4),
}


@pytest.mark.parametrize("method", ERASERS)
def test_a_gated_eraser_is_silent_to_the_last_bit_below_its_threshold(method: str) -> None:
    family = built("emoji")
    model = model_of(family)
    prompts = prompts_of(CONCEPT, 60)
    encoded = encode_concept(model, CONCEPT, prompts, silent)
    overlay = OverlayRequest(least_share=0.0, prompts=("a cat", "a red dog"))
    artifact = fit_closed_form(model, CONCEPT, encoded, RATES, ERASERS[method], overlay, silent)
    assert artifact.meta.method == method and artifact.meta.settings["gated"] is True
    guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    stacks = ImageStacks.of([MethodGuard(METHODS[method], guard)])
    texts = [prompt.text for prompt in prompts]
    scores = stacks.prompts.stacks[0].sense(family.encode(texts))[:, 0]
    low, high = texts[int(scores.argmin())], texts[int(scores.argmax())]
    threshold = float(scores.min() + scores.max()) / 2

    def generated(*guards: RowGuard) -> Tensor:
        engine = DiffusionEngine(family, stacks, capacity=2)
        engine.start([ImageStart(text, seed=1, steps=2, guards=guards) for text in (low, high)])
        while not (complete := engine.step()):
            pass
        latents = engine.finished(complete)
        engine.close()
        return latents

    bare, guarded = generated(), generated(RowGuard("g", threshold, 1.0))
    assert torch.equal(guarded[0], bare[0]) and not torch.equal(guarded[1], bare[1])


class Counted:
    """Rounds with these numbers of leaks."""

    def __init__(self, *leaks: int) -> None:
        self._leaks = iter(leaks)
        self.tensors: list[Any] = []

    def leaks(self, method: str, tensors: Any, settings: Any, progress: Any) -> int:
        assert method == "rece" and settings["groups"]
        self.tensors.append(tensors)
        return next(self._leaks)


def test_the_first_round_with_the_fewest_leaks_is_kept() -> None:
    eraser = Rece(Uce("a banana"), rounds=4)
    overlay, judged = OverlayRequest(least_share=0.0), Counted(5, 2, 3, 2)
    artifact = fit_closed_form(
        model_of(built("emoji")), CONCEPT, None, RATES, eraser, overlay, silent, cast(Any, judged)
    )
    settings = artifact.meta.settings
    assert settings["rounds"] == 2 and settings["leaks"] == [5, 2, 3, 2]
    assert np.array_equal(artifact.tensors["reads.0"], judged.tensors[1]["reads.0"])
    # without a judge, it is the last one
    last = fitted(built("emoji"), eraser, least_share=0.0)
    assert last.meta.settings["rounds"] == 4 and last.meta.settings["leaks"] == []
    assert np.array_equal(last.tensors["reads.0"], judged.tensors[3]["reads.0"])


def test_states_come_from_the_encoder_where_the_projections_read_them_as_they_are() -> None:
    for name in ("emoji", "stable diffusion xl"):
        model = model_of(built(name))
        recorder = PromptStates(model)
        ((count, encoded),) = recorder.tokens(["a knife", "a cat and a dog"])
        recordings = model.text_states(["a knife", "a cat and a dog"], steps=4, evaluations=1)
        (recording,) = recordings
        real = torch.cat(recording.masks, 1)
        expected = next(iter(recording.states.values()))[real].double()
        torch.testing.assert_close(encoded["0"].states, expected, atol=1e-5, rtol=1e-4)
        assert count == 2 and encoded["0"].last.sum() == 2 * len(recording.masks)


def test_an_edit_to_the_concept_itself_is_refused() -> None:
    own = CONCEPT.model_copy(
        update={"phrases": CONCEPT.phrases.model_copy(update={"train": ("a knife",)})}
    )
    model = model_of(built("emoji"))
    with pytest.raises(DataError, match="are the same: give another --instead than 'a knife'"):
        fit_closed_form(model, own, None, RATES, Uce("a knife"), OverlayRequest(), silent)
