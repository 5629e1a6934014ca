"""UCE fitted on tiny pipelines: against weights edited by the paper's equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.closed_form.fit import ClosedForm, OverlayRequest, fit_closed_form
from guard.fitting.images.closed_form.uce import Uce, kept_phrases
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import text_projections
from steering.fingerprint import fingerprint
from steering.methods import gated_overlays
from steering.methods.fitted import FittedGuard
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


def test_an_edit_to_the_concept_itself_is_refused() -> None:
    own = CONCEPT.model_copy(
        update={"phrases": CONCEPT.phrases.model_copy(update={"train": ("a knife",)})}
    )
    model = model_of(built("emoji"))
    with pytest.raises(DataError, match="are the same: give another --instead than 'a knife'"):
        fit_closed_form(model, own, None, RATES, Uce("a knife"), OverlayRequest(), silent)
