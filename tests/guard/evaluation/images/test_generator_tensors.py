"""The drawer with what rows bring: learned words, noise, and masks of what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.row_tensors import RowTensors, name_of
from guard.evaluation.images.suite import ImageSuite
from guard.reporting.pngs import overlaid, png
from steering.engines.diffusion.families import Family
from tests.guard.evaluation.m_erasure.tiny_guards import save

WORD = "a <thing>"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[EngineImageGenerator, Family, dict[str, str]]:
    config, family = save(tmp_path_factory.mktemp("brought"))
    fields: dict[str, Any] = {"model": "tiny", "judge": Path("j"), "prompts": ()}
    fields |= {"methods": {"a": "a"}, "ours": "a", "steps": 2, "batch": 3}
    drawer = EngineImageGenerator(config, ImageSuite.model_validate(fields), family)
    assert family.embeddings is not None
    table = family.embeddings.detach().numpy()
    # the vectors of "knife" and "cat", and two noises
    tensors = {"knife": table[[7]], "cat": table[[5]]}
    for i in range(2):
        draw = torch.Generator().manual_seed(i)
        tensors[f"noise {i}"] = torch.randn(family.shape, generator=draw).numpy()
    names = {key: name_of(each) for key, each in tensors.items()}
    drawer.bring({names[key]: each for key, each in tensors.items()})
    return drawer, family, names


def _image(
    drawer: EngineImageGenerator,
    prompt: str,
    policy: str | None,
    brought: RowTensors,
    seed: int = 0,
) -> Any:
    (one,) = drawer.generate([prompt], [seed], [policy], lambda _count: None, [brought])
    return one.image


def test_a_learned_word_is_read_as_its_vectors(made: Any) -> None:
    drawer, _, names = made
    for word in ("knife", "cat"):
        given = RowTensors(word=names[word])
        for policy in (None, "knife-nearest"):
            own = _image(drawer, WORD, policy, given)
            assert np.array_equal(own, _image(drawer, f"a {word}", policy, RowTensors())), word
    both = [RowTensors(word=names[word]) for word in ("knife", "cat")]
    looks = drawer.inspect([WORD] * 2, ["knife-nearest"] * 2, both)
    assert [look.fired for look in looks] == [True, False]


def test_noise_is_where_a_image_begins(made: Any) -> None:
    drawer, _, names = made
    first, second = (RowTensors(noise=names[f"noise {i}"]) for i in range(2))
    found = [_image(drawer, "", None, each) for each in (first, second)]
    assert not np.array_equal(*found)
    # the seed says nothing then
    assert np.array_equal(found[0], _image(drawer, "", None, first, seed=7))
    assert np.array_equal(found[0], _image(drawer, "", "knife-nearest", first))
    guarded = _image(drawer, "a knife", "knife-nearest", first)
    assert not np.array_equal(guarded, _image(drawer, "a knife", None, first))


def test_where_a_guard_has_written_is_told(made: Any) -> None:
    drawer, family, names = made
    brought = [RowTensors(noise=names["noise 0"])] * 2
    made_ = drawer.generate(["a cat"] * 2, [0, 1], [None, "knife-irece"], lambda _c: None, brought)
    assert made_[0].mask is None
    mask = made_[1].mask
    assert mask is not None and mask.shape == family.shape[1:]
    assert 0 < mask.mean() < 1


def test_a_mask_is_laid_over_its_image() -> None:
    import base64
    import io

    from PIL import Image

    white = np.full((4, 4, 3), 255, np.uint8)
    mask = np.zeros((2, 2, 3), np.uint8)
    mask[0, 0] = 255
    shown = overlaid(png(white), png(mask))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))
    assert (pixels[2:] == 255).all() and (pixels[:2, 2:] == 255).all()
    assert (pixels[:2, :2, 0] > pixels[:2, :2, 1] + 50).all()
