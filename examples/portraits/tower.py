"""The vision tower: a small ResNet and two transformer layers behind it, in transformers' DPT.

`python -m examples.portraits.tower` trains it and goes on where its checkpoint ends. Each patch of
a portrait learns whose it is, each patch of a scene which object or background covers it: so that
every image token carries what questions are about.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DPTConfig, DPTModel

from examples.emoji import scenes
from examples.emoji.checkpoint import resume, save
from examples.emoji.sprites import names
from examples.portraits import images
from examples.portraits.draw import TEST, TRAIN
from examples.portraits.people import BEARDS, GLASSES, HAIRS, HEADS, SKINS, Look, people

PATCH, GRID = 16, images.SIZE // 16
WIDTH = 256
CONFIG: dict[str, Any] = {
    "is_hybrid": True,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 32,
        "hidden_sizes": [64, 128, WIDTH],
        "depths": [1, 1, 2],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3"],
    },
    "backbone_featmap_shape": [1, WIDTH, GRID, GRID],
    "neck_ignore_stages": [0, 1],
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "image_size": images.SIZE,
    "patch_size": PATCH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FEATURES = (HEADS, SKINS, HAIRS, ("", *BEARDS), ("", *GLASSES))
OBJECTS = len(people())
GROUNDS = OBJECTS + len(names())
CLASSES = GROUNDS + len(scenes.BACKGROUNDS)


def pixels_of(batch: list[Any]) -> Tensor:
    """`[images, 3, SIZE, SIZE]` in -1..1, as SigLIP's image processor gives them."""
    stacked = np.stack([np.asarray(image, np.float32) for image in batch])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def features_of(look: Look) -> list[int]:
    """The index of each feature in FEATURES."""
    values = (look.head, look.skin, look.hair, look.beard, look.glasses)
    return [options.index(value) for options, value in zip(FEATURES, values, strict=True)]


def scene_labels(drawn: scenes.Scene) -> NDArray[np.int64]:
    """`[GRID, GRID]`: the object that covers most of each patch's middle, or the background."""
    labels = np.full((GRID, GRID), GROUNDS + drawn.background)
    middle = (np.arange(GRID) + 0.5) * PATCH
    for item in drawn.objects:
        left, top = item.x * images.SCALE, item.y * images.SCALE
        inside_x = (middle > left) & (middle < left + images.SPRITE)
        inside_y = (middle > top) & (middle < top + images.SPRITE)
        labels[np.ix_(inside_y, inside_x)] = OBJECTS + item.concept
    return labels


class Tower(nn.Module):
    """The encoder with the heads of its training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = DPTModel(DPTConfig(**CONFIG), add_pooling_layer=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.patch = nn.Linear(WIDTH, CLASSES)
        self.style = nn.Linear(WIDTH, 2)
        self.look = nn.ModuleList(nn.Linear(WIDTH, len(options)) for options in FEATURES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        hidden = self.encoder(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        hidden = self.norm(hidden)
        pooled = hidden.mean(1)
        return self.patch(hidden), self.style(pooled), [head(pooled) for head in self.look]


@dataclass(frozen=True)
class Stage:
    """Steps of training, their highest rate, and the shares of single portraits and of pairs among
    the images; the rest are scenes."""

    steps: int
    rate: float
    single: float
    pairs: float


STAGES = (Stage(690, 1e-3, 0.6, 0.08), Stage(244, 6e-4, 0.3, 0.06))


def batch_of(
    size: int, rng: np.random.Generator, stage: Stage, columns: range = range(TRAIN)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, labels of patches `[images, GRID²]`, of styles, of features; -100 where there is
    none."""
    drawn, labels = [], np.full((size, GRID, GRID), -100)
    styles, looks = np.full(size, -100), np.full((size, len(FEATURES)), -100)

    def someone() -> tuple[int, int]:
        return int(rng.integers(len(people()))), int(rng.choice(columns))

    for i in range(size):
        kind = rng.random()
        if kind < stage.single:
            person, column = someone()
            image = images.portrait(person, column, rng)
            labels[i] = person
            looks[i] = features_of(people()[person].look)
        elif kind < stage.single + stage.pairs:
            left, right = someone(), someone()
            image = images.pair(left, right, rng)
            labels[i, :, : GRID // 2], labels[i, :, GRID // 2 :] = left[0], right[0]
        else:
            scene = scenes.loose(int(rng.integers(1, 4)), rng)
            image, labels[i], styles[i] = images.scene(scene), scene_labels(scene), scene.style
        drawn.append(images.disturbed(image, rng))
    return (
        pixels_of(drawn),
        *(torch.from_numpy(a) for a in (labels.reshape(size, -1), styles, looks)),
    )


def loss_of(tower: Tower, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    pixels, labels, styles, looks = batch
    patch, style, look = tower(pixels)
    entropy = nn.functional.cross_entropy
    loss = entropy(patch.flatten(0, 1), labels.flatten())
    if bool((styles >= 0).any()):
        loss = loss + 0.2 * entropy(style, styles)
    if bool((looks >= 0).any()):
        loss = loss + 0.2 * sum(entropy(part, looks[:, i]) for i, part in enumerate(look))
    return loss


@torch.inference_mode()
def accuracy(tower: Tower, columns: range, seed: int) -> dict[str, float]:
    """Shares of right answers on images with `columns` of the sheets: people by the vote of their
    patches, patches of objects, styles."""
    rng = np.random.default_rng(seed)
    pixels, labels, styles, looks = batch_of(400, rng, STAGES[0], columns)
    tower.eval()
    patch, style, _ = tower(pixels)
    tower.train()
    single = looks[:, 0] >= 0
    voted = patch.log_softmax(-1).mean(1).argmax(-1)
    covered = (labels >= OBJECTS) & (labels < GROUNDS)
    return {
        "people": float((voted == labels[:, 0])[single].float().mean()),
        "objects": float((patch.argmax(-1) == labels)[covered].float().mean()),
        "styles": float((style.argmax(-1) == styles)[styles >= 0].float().mean()),
    }


def train(folder: Path, *, size: int = 96) -> None:
    """Train through all STAGES, then write `tower.safetensors`."""
    torch.manual_seed(0)
    tower = Tower()
    weights = [p for p in tower.parameters() if p.ndim > 1]
    rest = [p for p in tower.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    checkpoint = folder / "tower-checkpoint.safetensors"
    done = resume(checkpoint, tower, optimizer)
    rng = np.random.default_rng(1000 + done)
    schedule = [(stage, i) for stage in STAGES for i in range(stage.steps)]
    for step, (stage, i) in enumerate(schedule[done:], done + 1):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * min(1.0, (i + 1) / 100, 2 * (1 - i / stage.steps))
        loss = loss_of(tower, batch_of(size, rng, stage))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            seen = accuracy(tower, range(TRAIN, TRAIN + TEST), 7)
            print(f"step {step}, loss {loss.item():.3f}, unseen portraits {seen}", flush=True)
            save(checkpoint, tower, optimizer, step)
    save_file(tower.state_dict(), folder / "tower.safetensors")
    print("unseen portraits", accuracy(tower, range(TRAIN, TRAIN + TEST), 8), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/portraits"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train(arguments.folder)
