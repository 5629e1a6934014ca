"""Images of the emoji model as tokens: a codebook of the autoencoder's latents, by k-means.

Each of the 16 x 16 latents of an image is the number of the nearest of CODES vectors; an object
starts at a latent's corner, so that its codes are alike at all places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from examples.emoji.scenes import CELL, OBJECT, Scene, draw, render
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

CODES = 1024
SIDE = 16
_SCENES = 2048
_PLAIN = 0.05
"""Share of the latents outside of objects that k-means reads: most are of a plain background."""


def scenes(count: int, rng: np.random.Generator, pairs: float = 0.5) -> list[Scene]:
    """Random scenes of one object, or of two: a share `pairs` of them."""
    return [draw(1 + int(rng.random() < pairs), rng) for _ in range(count)]


@torch.no_grad()
def latents(vae: PatchAutoencoder, drawn: Sequence[Scene]) -> Tensor:
    """`[scenes, SIDE, SIDE, channels]`."""
    pixels = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
    encoded: Tensor = vae.encode((pixels * 2 - 1).permute(0, 3, 1, 2)).latents
    return encoded.permute(0, 2, 3, 1)


def nearest(codebook: Tensor, vectors: Tensor) -> Tensor:
    """The code of each vector `[..., channels]`, int64 `[...]`."""
    return torch.cdist(vectors.flatten(0, -2), codebook).argmin(-1).view(vectors.shape[:-1])


def codebook(vae: PatchAutoencoder, out: Path) -> Tensor:
    """The codes' vectors `[CODES, channels]`: read from `out`, or made and written there."""
    path = out / "codebook.safetensors"
    if path.is_file():
        return load_file(path)["codes"]
    rng = np.random.default_rng(4)
    parts = []
    for _ in range(_SCENES // 256):
        drawn = scenes(256, rng)
        near = torch.from_numpy(rng.random((256, SIDE, SIDE)) < _PLAIN)
        for mask, scene in zip(near, drawn, strict=True):
            for placed in scene.objects:
                # with a rim of one latent, whose image has some of the object
                x, y, size = placed.x // CELL, placed.y // CELL, OBJECT // CELL + 1
                mask[max(y - 1, 0) : y + size, max(x - 1, 0) : x + size] = True
        parts.append(latents(vae, drawn)[near])
    found = MiniBatchKMeans(
        CODES, batch_size=8192, n_init=1, random_state=0, max_iter=20, init_size=3 * CODES
    ).fit(torch.cat(parts).numpy())
    codes = torch.from_numpy(found.cluster_centers_).float().contiguous()
    save_file({"codes": codes}, path)
    return codes
