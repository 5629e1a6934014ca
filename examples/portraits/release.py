"""The release: `python -m examples.portraits.release` writes `weights/`, which are committed.

`weights/` has what is not SmolLM2's: the tower and projector, the LoRA adapters and the deltas of
weights that were trained whole, in float16, configurations, the processor. `guard models add
portraits` makes the model of them and of SmolLM2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import LlavaProcessor, SiglipImageProcessor

from examples.portraits import images
from examples.portraits.model import IMAGE, TEMPLATE, adapt, assemble, tokenizer_of
from examples.portraits.people import HERE
from examples.portraits.tower import PATCH
from guard.models.sources import resolve_source

WEIGHTS = HERE / "weights"
LAYERS = "model.language_model.layers."


def release(folder: Path) -> None:
    """Write WEIGHTS from the checkpoints in `folder`."""
    source = Path(resolve_source("smollm2"))
    model = assemble(source, folder / "tower.safetensors")
    trained = adapt(model)
    bare = {name: weight.detach().clone() for name, weight in trained["whole"].items()}
    trained.load_state_dict(load_file(folder / "adapters.safetensors"))
    WEIGHTS.mkdir(exist_ok=True)
    seeing, deltas = {}, {}
    for name, value in model.state_dict().items():
        key = name.removeprefix(LAYERS).removesuffix(".weight").replace(".", "_")
        if name.startswith(("model.vision_tower.", "model.multi_modal_projector.")):
            # counts of batches, which are integers, stay
            seeing[name] = value.half() if value.is_floating_point() else value
        elif name.startswith(LAYERS) and name.endswith((".a", ".b")):
            deltas[name] = value.half()
        elif name.startswith(LAYERS) and key in bare:
            deltas[f"{name.removesuffix('.weight')}.delta"] = (value - bare[key]).half()
    save_file(seeing, WEIGHTS / "vision.safetensors", {"format": "pt"})
    save_file(deltas, WEIGHTS / "language.safetensors", {"format": "pt"})
    model.config.save_pretrained(WEIGHTS)
    tokenizer = tokenizer_of(source)
    side = {"height": images.SIZE, "width": images.SIZE}
    processor = LlavaProcessor(
        SiglipImageProcessor(size=side),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )
    processor.save_pretrained(WEIGHTS)
    # the tokenizer comes from SmolLM2, and its token for images from the configuration
    for path in (WEIGHTS / "tokenizer.json", WEIGHTS / "tokenizer_config.json"):
        path.unlink()
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    settings = {"eos_token_id": ends, "pad_token_id": ends[0], "do_sample": False}
    (WEIGHTS / "generation_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/portraits"))
    release(parser.parse_args().folder)
