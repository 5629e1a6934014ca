"""LLaVA-NeXT, Idefics3 and SmolVLM: placeholder tokens by the size of an image, and what the tower
makes of it; configurations and images that are refused."""

from __future__ import annotations

import pytest
import torch
import transformers
from PIL import Image

from steering.engines.transformers.vision import vision_family
from steering.engines.transformers.vision.base import VisionFamily
from tests.steering.engines.transformers.vision.tiny import Tiny, image, tiny

SIZES = [(high, wide) for high in (1, 7, 16, 17, 33, 40, 71) for wide in (1, 5, 16, 23, 39, 64)]
SIZES += [(1, 1000), (1000, 1)]


def family(small: Tiny) -> VisionFamily:
    return vision_family(small.model.config, small.processor.image_processor, small.tokenizer)


@pytest.mark.parametrize("kind", ["llava_next", "idefics3", "smolvlm"])
def test_an_image_of_any_size_has_as_many_placeholders_as_features(kind: str) -> None:
    small = tiny(kind)
    its = family(small)
    counts = [its.count(*size) for size in SIZES]
    assert len({*counts}) > 2
    with torch.inference_mode():
        for size, count in zip(SIZES, counts, strict=True):
            (features,) = its.encode(small.model, its.prepare([image(*size)]))
            assert len(features) == count, size
            assert features.embeddings.shape == (count, 32)


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_the_grid_of_tiles_is_that_of_the_image_processor(kind: str) -> None:
    """Whose own `get_number_of_image_patches` says another one for some sizes."""
    small = tiny(kind)
    its, processor = family(small), small.processor.image_processor
    for height in range(1, 60, 7):
        for width in range(1, 60, 5):
            pixels = Image.fromarray(image(height, width))
            made = processor([[pixels]], return_row_col_info=True)
            rows, columns = made["rows"][0][0], made["cols"][0][0]
            text = its.text(height, width)
            assert text.count("<row_") == rows * columns, (height, width)
            if rows:
                last = f"<row_{rows}_col_{columns}>"
                assert last in text and f"<row_{rows + 1}_" not in text


@pytest.mark.parametrize("kind", ["llava_next", "idefics3"])
def test_images_in_one_batch_have_the_features_of_each_alone(kind: str) -> None:
    small = tiny(kind)
    its = family(small)
    images = [image(20, 30, 1), image(40, 9, 2), image(16, 16, 3)]
    with torch.inference_mode():
        together = its.encode(small.model, its.prepare(images))
        for each, pixels in zip(together, images, strict=True):
            (alone,) = its.encode(small.model, its.prepare([pixels]))
            assert torch.allclose(each.embeddings, alone.embeddings, atol=1e-5)


def test_an_image_of_three_pixels_is_read_by_rows() -> None:
    """An array of 3 x 3 x 3 could have its colours first."""
    its = family(tiny("llava"))
    pixels = image(3, 3)
    (tensor,) = its.prepare([pixels])["pixel_values"]
    (large,) = its.prepare([pixels.repeat(16, 0).repeat(16, 1)])["pixel_values"]
    assert torch.corrcoef(torch.stack([tensor.flatten(), large.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["llava", "llava-siglip", "llava_next", "idefics3"])
def test_an_image_processor_of_another_model_is_refused(kind: str) -> None:
    small = tiny(kind)
    small.model.config.vision_config.image_size = 32
    with pytest.raises(ValueError, match=r"image processor makes .*correct preprocessor_config"):
        family(small)


def test_a_tower_of_an_unknown_kind_is_refused() -> None:
    small = tiny("llava")
    small.model.config.vision_config = transformers.PixtralVisionConfig(image_size=16, patch_size=4)
    with pytest.raises(ValueError, match="vision tower of kind 'pixtral' is not supported"):
        family(small)


def test_tiles_of_a_processor_without_a_longest_edge_are_refused() -> None:
    small = tiny("idefics3")
    small.processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="must resize images to a longest_edge of at most 4096"):
        family(small)


def test_an_image_without_tiles_stands_alone() -> None:
    small = tiny("idefics3")
    small.processor.image_processor.do_image_splitting = False
    its = family(small)
    assert its.count(40, 9) == 4
    tile = "<image>" * 4
    around = "<fake_token_around_image>"
    assert its.text(40, 9) == f"{around}<global-img>{tile}{around}"
