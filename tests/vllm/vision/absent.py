"""Stand-ins for what vLLM's vision-language models import of torchvision, which is not there.

vLLM takes a few functions and classes from those of transformers' image processors that run in
torchvision. Beside each of them transformers has one that runs in PIL and NumPy, with the same
names: it stands in. For videos there is none: one that only tells sizes stands in, and nobody sends
a video.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_IMAGES = ("gemma3", "pixtral", "qwen2_vl")
_VIDEOS = ("qwen2_vl", "qwen3_vl")


class Videos(dict[str, Any]):
    """What vLLM and transformers ask of a processor of videos before there is one; as JSON, too."""

    _auto_class = None
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    patch_size, merge_size, temporal_patch_size = 14, 2, 2
    fps, min_frames, max_frames = 2, 2, 2
    model_input_names = ()
    valid_kwargs = type("Arguments", (), {})


def stand_in() -> None:
    """Put them among the modules of this process, before a model is loaded."""
    for family in _IMAGES:
        there = vars(import_module(f"transformers.models.{family}.image_processing_pil_{family}"))
        own = {key: value for key, value in there.items() if not key.startswith("__")}
        named = {key.removesuffix("Pil"): value for key, value in own.items()}
        _put(f"transformers.models.{family}.image_processing_{family}", named)
    for family in _VIDEOS:
        _put(
            f"transformers.models.{family}.video_processing_{family}",
            {
                "smart_resize": lambda **sizes: (sizes["height"], sizes["width"]),
                "Qwen2VLVideoProcessor": Videos,
                "Qwen3VLVideoProcessor": Videos,
            },
        )
    auto: Any = import_module("transformers.models.auto.video_processing_auto")
    smolvlm: Any = import_module("transformers.models.smolvlm.processing_smolvlm")
    mixin: Any = import_module("transformers.processing_utils").ProcessorMixin
    check = mixin.check_argument_for_proper_class

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        return Videos if isinstance(argument, Videos) else check(self, name, argument)

    mixin.check_argument_for_proper_class = check_argument_for_proper_class
    # which spells the numbers of frames
    smolvlm.num2words = str
    auto.AutoVideoProcessor.from_pretrained = lambda *_args, **_kwargs: Videos()


def _put(name: str, values: dict[str, object]) -> None:
    module = ModuleType(name)
    vars(module).update(values)
    sys.modules[name] = module
