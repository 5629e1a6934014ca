"""The autoencoder of the emoji model: 64 x 64 images to 8 x 16 x 16 latents and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from examples.emoji import checkpoint
from examples.emoji.scenes import draw, loose, render
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

BATCH = 32
NOISE = 0.1
"""Deviation of the noise on latents in training, which makes decoding robust to denoiser errors."""


def build() -> PatchAutoencoder:
    return PatchAutoencoder().to(memory_format=torch.channels_last)


def images(count: int, rng: np.random.Generator) -> Tensor:
    """`[count, 3, 64, 64]` in -1..1: scenes on the grid, a quarter of them off it."""
    kinds = (draw, draw, draw, loose)
    scenes = [kinds[i % 4](int(rng.integers(1, 4)), rng) for i in range(count)]
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    return (pixels * 2 - 1).permute(0, 3, 1, 2)


def train(out: Path, steps: int, rate: float = 2e-3) -> None:
    """Train, or resume from the last checkpoint in `out`, and write the finished model to
    out/vae."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    state = out / "autoencoder.safetensors"
    first = checkpoint.resume(state, model, optimizer)
    for step in track(range(first, steps), "autoencoder"):
        done = step / steps
        # linear up over the first hundredth, half a cosine down
        lr = rate * min(1.0, done * 100) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = images(BATCH, np.random.default_rng((1, step)))
        latents = model.encode(batch).latents
        decoded = model.decode(latents + NOISE * torch.randn_like(latents)).sample
        error = decoded - batch
        loss = error.abs().mean() + 2 * error.square().mean() + 2e-3 * latents.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(state, model, optimizer, step + 1)
            scale, psnr = measure(model)
            print(
                f"step {step + 1}: psnr {psnr:.2f} dB, latents' deviation {scale:.3f}", flush=True
            )
    model.register_to_config(scaling_factor=1 / measure(model)[0])
    model.save_pretrained(out / "vae")


@torch.no_grad()
def measure(model: PatchAutoencoder) -> tuple[float, float]:
    """Standard deviation of the latents and PSNR in dB on scenes outside of training."""
    batch = images(96, np.random.default_rng(2))
    latents = model.encode(batch).latents
    decoded = model.decode(latents).sample.clamp(-1, 1)
    # the range is 2
    return float(latents.std()), 10 * math.log10(4 / float((decoded - batch).square().mean()))
