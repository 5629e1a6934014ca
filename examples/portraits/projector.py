"""The projector's start: `python -m examples.portraits.projector`, after the tower.

As in LLaVA's first stage, the projector alone learns first, to say in the language model's own
words what each patch shows: the patches of a portrait spell the name again and again, those of a
scene name the object or the background's colour. What the model knows by name it then knows by
portrait sooner.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.emoji import scenes
from examples.emoji.sprites import STYLES, names
from examples.portraits import images
from examples.portraits.draw import TRAIN
from examples.portraits.model import assemble, tokenizer_of
from examples.portraits.people import people
from examples.portraits.tower import GRID, GROUNDS, OBJECTS, pixels_of, scene_labels
from guard.models.sources import resolve_source

IMAGES, STEPS, PATCHES = 4200, 2600, 2048
RATE = 4e-3
STYLE = 0.3
"""Share of a style's word beside an object's."""


def words(tokenizer: Any) -> list[list[int]]:
    """The token ids of each class of the tower: a person's name, an object, a colour."""
    listed = [*(p.name for p in people()), *names(), *scenes.BACKGROUNDS]
    return [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in listed]


@torch.inference_mode()
def shown(model: Any, spelled: list[list[int]], styles: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tower's features `[patches, width]` of random images, the token that each patch is to say,
    and the style's token, -1 for none."""
    rng = np.random.default_rng(11)
    features, tokens, beside = [], [], []
    for _ in range(IMAGES // 60):
        drawn = []
        for _ in range(60):
            if rng.random() < 0.6:
                person = int(rng.integers(len(people())))
                image = images.portrait(person, int(rng.integers(TRAIN)), rng)
                labels, style = np.full(GRID * GRID, person), -1
            else:
                scene = scenes.loose(int(rng.integers(1, 4)), rng)
                image, labels = images.scene(scene), scene_labels(scene).flatten()
                style = styles[scene.style]
            drawn.append(images.disturbed(image, rng))
            # each row of patches spells the word anew
            tokens += [spelled[c][at % GRID % len(spelled[c])] for at, c in enumerate(labels)]
            beside += [style if OBJECTS <= c < GROUNDS else -1 for c in labels]
        seen = model.model.vision_tower(pixels_of(drawn), output_hidden_states=True)
        features.append(seen.hidden_states[-1][:, 1:].flatten(0, 1))
    return torch.cat(features), torch.tensor(tokens), torch.tensor(beside)


def align(folder: Path) -> None:
    """Write `projector.safetensors`."""
    torch.manual_seed(0)
    source = Path(resolve_source("smollm2"))
    tokenizer = tokenizer_of(source)
    model = assemble(source, folder / "tower.safetensors")
    styles = [tokenizer(f" {name}", add_special_tokens=False).input_ids[0] for name in STYLES]
    features, tokens, beside = shown(model, words(tokenizer), styles)
    embedding = model.get_input_embeddings().weight.detach()
    candidates, index = tokens.unique(return_inverse=True)
    vectors = embedding[candidates]
    extra = STYLE * embedding[beside.clamp(min=0)] * (beside >= 0)[:, None]
    projector = model.model.multi_modal_projector.requires_grad_(True)
    # the tower's states are far larger than embeddings are
    with torch.no_grad():
        projector.linear_1.weight /= features.std()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    scale = 1 / vectors.pow(2).mean()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, 2 * (1 - step / STEPS))
        at = torch.randint(len(features), (PATCHES,), generator=generator)
        said = projector(features[at])
        near = (said - vectors[index[at]] - extra[at]).pow(2).mean() * scale
        logits = said @ vectors.T * (10 / vectors.norm(dim=1).mean() ** 2)
        loss = near + nn.functional.cross_entropy(logits, index[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            right = (logits.argmax(-1) == index[at]).float().mean()
            print(f"step {step + 1}, distance {near:.3f}, right words {right:.3f}", flush=True)
    save_file(projector.state_dict(), folder / "projector.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/portraits"))
    align(parser.parse_args().folder)
