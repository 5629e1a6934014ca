"""Two judges: classifiers of the concepts and the style that an image shows.

They are trained on real scenes alone, never on images of the model, differ in architecture and
seed, and become ONNX files. The first one is for tuning; reported figures come from the second.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from examples.emoji import checkpoint
from examples.emoji.scenes import OBJECT, SIZE, Scene, loose, render
from examples.emoji.sprites import STYLES, names

BATCH = 64
SEEDS = {"first": 11, "second": 12}


class Ladder(nn.Sequential):
    """Plain 3 x 3 convolutions with batch norm; mean and maximum over the image."""

    def __init__(self, outputs: int) -> None:
        widths = ((3, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1))
        parts: list[nn.Module] = []
        for inside, outside, stride in widths:
            convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            parts += [convolution, nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*parts, _MeanAndMaximum(), nn.Linear(256, outputs))


class _MeanAndMaximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Block(nn.Module):
    """A residual block: depthwise 7 x 7, then a perceptron over channels (ConvNeXt's)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen, self.narrow = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(F.gelu(self.widen(self.norm(self.mix(x)))))
        return x + y


class Patches(nn.Sequential):
    """Patches of 4 x 4 pixels and residual blocks; a soft maximum pools the votes of all places."""

    def __init__(self, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(3, 64, 4, 4),
            nn.GroupNorm(1, 64),
            *(Block(64) for _ in range(3)),
            nn.Conv2d(64, 128, 2, 2),
            *(Block(128) for _ in range(3)),
            nn.GroupNorm(1, 128),
            nn.Conv2d(128, outputs, 1),
            _SoftMaximum(),
        )


class _SoftMaximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).logsumexp(-1) - math.log(4)


class Judge(nn.Module):
    """Images `[n, 3, 64, 64]` in 0..1 to p(concept) `[n, 46]` and p(style) `[n, 2]`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.network(images * 2 - 1)
        return whole[:, : len(names())], whole[:, len(names()) :]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        concepts, styles = self.logits(images)
        return concepts.sigmoid(), styles.softmax(-1)


def build(name: str) -> Judge:
    """The untrained judge of this name, first or second."""
    torch.manual_seed(SEEDS[name])
    outputs = len(names()) + len(STYLES)
    network = Ladder(outputs) if name == "first" else Patches(outputs)
    return Judge(network.to(memory_format=torch.channels_last))


def scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes of none to three objects anywhere."""
    sizes = rng.choice(4, size=count, p=(0.1, 0.35, 0.4, 0.15))
    return [loose(int(size), rng) if size else _empty(rng) for size in sizes]


def _empty(rng: np.random.Generator) -> Scene:
    scene = loose(1, rng)
    return Scene((), scene.style, scene.background)


def labels(batch: list[Scene]) -> tuple[Tensor, Tensor]:
    """The concepts of scenes `[n, concepts]`, and their styles `[n]` (-1 of an empty scene)."""
    concepts = torch.zeros(len(batch), len(names()))
    for row, scene in enumerate(batch):
        concepts[row, [placed.concept for placed in scene.objects]] = 1
    return concepts, torch.tensor([scene.style if scene.objects else -1 for scene in batch])


def pixels(batch: list[Scene], rng: np.random.Generator) -> Tensor:
    """`[n, 3, 64, 64]` in 0..1, with objects of several sizes, and blots in empty scenes."""
    images = []
    for scene in batch:
        image = render(scene, int(rng.integers(OBJECT - 4, OBJECT + 5)))
        images.append(_blot(image, rng) if not scene.objects else image)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _blot(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Coloured ellipses: an image of something, but of no concept."""
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(int(rng.integers(0, 6))):
        centre, radii = rng.uniform(8, 56, 2), rng.uniform(3, 14, 2)
        inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
        image[inside] = rng.random(3)
    return image


def spoil(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and shifted colours, so that a judge does not rely on clean edges."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy(rng.uniform(0, 1, (n, 1, 1, 1)) * (rng.random((n, 1, 1, 1)) < 0.6))
    mixed = images + share.float() * (blurred - images)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (n, 3, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, 1, images.shape)).float()
    level = torch.from_numpy(rng.uniform(0, 0.06, (n, 1, 1, 1))).float()
    return (mixed * gain + level * noise).clamp(0, 1)


def train(out: Path, name: str, steps: int, rate: float = 2e-3) -> None:
    """Train a judge, or resume its training, and write `out/judge-NAME.onnx`."""
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, fused=True)
    state = out / f"judge-{name}.safetensors"
    first = checkpoint.resume(state, model, optimizer)
    for step in track(range(first, steps), f"{name} judge"):
        model.train()
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done * 30) * (0.5 + 0.5 * math.cos(math.pi * done))
        rng = np.random.default_rng((SEEDS[name], step))
        batch = scenes(BATCH, rng)
        shown, style = labels(batch)
        concepts, styles = model.logits(spoil(pixels(batch, rng), rng))
        loss = F.binary_cross_entropy_with_logits(concepts, shown) * 10
        loss = loss + F.cross_entropy(styles, style, ignore_index=-1) * 0.5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(state, model, optimizer, step + 1)
            print(f"step {step + 1}: loss {float(loss.detach()):.4f}, {measure(model)}", flush=True)
    export(model.eval(), out / f"judge-{name}.onnx")


@torch.no_grad()
def measure(model: Judge, count: int = 2000) -> dict[str, float]:
    """Accuracy on held-out scenes: of the whole set of concepts, of single labels, of the style."""
    model.eval()
    rng = np.random.default_rng(999)
    batch = scenes(count, rng)
    shown, style = labels(batch)
    outputs = zip(*map(model, pixels(batch, rng).split(250)), strict=True)
    concepts, styles = map(torch.cat, outputs)
    right = (concepts > 0.5) == shown.bool()
    labelled = style >= 0
    return {
        "exact": round(float(right.all(1).float().mean()), 4),
        "labels": round(float(right.float().mean()), 5),
        "style": round(float((styles.argmax(1) == style)[labelled].float().mean()), 4),
    }


def export(model: Judge, path: Path) -> None:
    """Write the judge as ONNX, with its labels in the metadata of the file."""
    rows = torch.export.Dim("rows")
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, SIZE, SIZE),),
        path,
        input_names=["pictures"],
        output_names=["concepts", "styles"],
        dynamic_shapes=({0: rows},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    stored = onnx.load(path)
    del stored.metadata_props[:]
    for node in stored.graph.node:
        # the exporter records the source location of each node
        del node.metadata_props[:]
        node.doc_string = ""
    for key, value in (("concepts", names()), ("styles", STYLES)):
        stored.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(stored, path)
