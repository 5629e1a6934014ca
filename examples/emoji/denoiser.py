"""The denoiser of the emoji model: a UNet over latents with cross-attention to the text's tokens.

Trained to predict v (Salimans and Ho, arXiv 2202.00512). Scenes and captions are random and new; a
pool keeps each of them for some steps, since encoding a scene and its caption costs a third of a
training step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from examples.emoji import checkpoint, text
from examples.emoji.captions import caption
from examples.emoji.scenes import draw, render
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

BATCH = 32
RATE = 1e-3
WARMUP = 200
FRESH = 4
"""New scenes per step: each is used BATCH / FRESH times on average."""
POOL = 32_768
FIRST_POOL = 8_192
COUNTS = ((1, 0.35), (2, 0.5), (3, 0.15))
"""Objects in a scene, and how often."""
UNCONDITIONAL = 0.1
TEXT_NOISE = 0.04
"""Deviation of the noise on the states, a tenth of theirs: similar words give similar images."""
GRID = (
    "a cat",
    "a knife on the left, noto style",
    "a drawing of a pistol on a green background",
    "santa claus in twemoji style",
    "a rose at the top, on a teal background",
    "a knife and a banana",
    "a cat on the left and a dog on the right, twemoji style",
    "a bomb above an apple on a white background",
    "a skull beside a heart",
    "a crown over a pig, pink background",
    "a car, a star and a pizza",
    "a police officer and a rocket above an owl",
    "a feline",
    "a dagger",
    "what a cook cuts meat with",
    "a bunch of bananas",
)


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        # the name in diffusers is misleading: this is the number of heads
        attention_head_dim=(2, 4, 8),
        # at 16 x 16 self-attention is not worth its time
        only_cross_attention=(True, False, False),
        cross_attention_dim=384,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )


class Pool:
    """Encoded scenes and captions, of which each step replaces a few."""

    def __init__(self, vae: PatchAutoencoder, step: int) -> None:
        self._vae = vae
        self._latents = torch.empty(POOL, 8, 16, 16, dtype=torch.float16)
        self._states = torch.empty(POOL, text.TOKENS, 384, dtype=torch.float16)
        self.size = self._next = 0
        for part in range(FIRST_POOL // 64):
            self.add(64, np.random.default_rng((2, step, part)))

    @torch.no_grad()
    def add(self, count: int, rng: np.random.Generator) -> None:
        """Encode and keep `count` random scenes, in place of the oldest once the pool is full."""
        sizes, shares = zip(*COUNTS, strict=True)
        scenes = [draw(int(rng.choice(sizes, p=shares)), rng) for _ in range(count)]
        captions = [caption(scene, rng) for scene in scenes]
        pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
        encoded = self._vae.encode((pixels * 2 - 1).permute(0, 3, 1, 2)).latents
        at = (self._next + torch.arange(count)) % POOL
        self._latents[at] = (encoded * self._vae.config.scaling_factor).half()
        self._states[at] = text.encode(captions).half()
        self._next = (self._next + count) % POOL
        self.size = min(self.size + count, POOL)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents and text states of `count` entries."""
        at = torch.randint(self.size, (count,), generator=generator)
        return self._latents[at].float(), self._states[at].float()


def train(
    out: Path,
    steps: int,
    decay: float = 0.4,
    grid_every_s: float = 300,
    start: Path | None = None,
    bf16: bool = False,
    tilt: float = 1.0,
) -> None:
    """Train for `steps` in all, or resume from the last checkpoint in `out`.

    The rate is constant, and falls to zero over the last share `decay` of the steps; a run that was
    planned longer can be stopped and resumed with fewer steps, and then decays sooner. `start` is a
    folder of exported weights, of which the autoencoder is used, and the UNet where there is no
    checkpoint. Timesteps are u ** tilt of their range, with u uniform: under 1 for more noisy ones,
    where the text matters most, over 1 for details at the end. `bf16` computes in bfloat16 and
    keeps the weights in float32: faster on processors that multiply it natively, slower on others.
    """
    torch.manual_seed(0)
    vae = PatchAutoencoder.from_pretrained((start or out) / "vae").eval()
    model = build()
    if start is not None:
        model.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())
    # the fused kernel's backward is slow on a CPU at these sizes
    model.set_attn_processor(AttnProcessor())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    average = checkpoint.Average(model, 0.998)
    state = out / "denoiser.safetensors"
    first = checkpoint.resume(state, model, optimizer, average)
    pool = Pool(vae, first)
    levels = scheduler().alphas_cumprod
    null_states = text.encode([""])
    last_grid, losses = time.monotonic(), []
    columns = (TextColumn("denoiser {task.fields[loss]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=steps, completed=first, loss="")
        for step in range(first, steps):
            lr = RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (decay * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            generator = torch.Generator().manual_seed(step)
            pool.add(FRESH, np.random.default_rng((3, step)))
            latents, states = pool.batch(BATCH, generator)
            unconditional = torch.rand(BATCH, generator=generator) < UNCONDITIONAL
            states = states + TEXT_NOISE * torch.randn(states.shape, generator=generator)
            states = torch.where(unconditional[:, None, None], null_states, states)
            noise = torch.randn(latents.shape, generator=generator)
            # one timestep of each of BATCH strata: less variance than independent ones
            spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
            times = (spread**tilt * len(levels)).long().clamp(max=len(levels) - 1)
            signal = levels[times].sqrt()[:, None, None, None]
            noise_scale = (1 - levels[times]).sqrt()[:, None, None, None]
            noisy = (signal * latents + noise_scale * noise).to(memory_format=torch.channels_last)
            target = signal * noise - noise_scale * latents
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                predicted = model(noisy, times, states).sample
            loss = (predicted.float() - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(model, step)
            losses.append(float(loss.detach()))
            bar.update(task, completed=step + 1, loss=f"{np.mean(losses[-200:]):.4f}")
            if time.monotonic() - last_grid > grid_every_s or step + 1 == steps:
                last_grid = time.monotonic()
                checkpoint.save(state, model, optimizer, step + 1, average)
                print(f"step {step + 1}: loss {np.mean(losses[-200:]):.4f}, rate {lr:.2e}")
                images = sample(averaged(out), vae, GRID)
                grid(images, out / f"grid-{step + 1:06d}.png")


def averaged(out: Path) -> UNet2DConditionModel:
    """The UNet with the averaged weights of the checkpoint in `out`."""
    model = build().eval()
    model.load_state_dict(checkpoint.averages(out / "denoiser.safetensors"))
    return model


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    vae: PatchAutoencoder,
    prompts: Sequence[str],
    *,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Images `[prompts, 64, 64, 3]` in 0..1 of the plain model, to follow its training."""
    states = text.encode([*prompts, *([""] * len(prompts))])
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), 8, 16, 16, generator=generator)
    stepper = scheduler()
    stepper.set_timesteps(steps)
    for t in stepper.timesteps:
        both = torch.cat([latents, latents]).to(memory_format=torch.channels_last)
        conditional, unconditional = unet(both, t, states).sample.chunk(2)
        predicted = unconditional + guidance * (conditional - unconditional)
        latents = stepper.step(predicted, t, latents).prev_sample
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def grid(images: Tensor, path: Path, columns: int = 8, scale: int = 2) -> None:
    """Write images side by side as one file."""
    rows = [torch.cat(list(row), 1) for row in images.split(columns)]
    whole = (torch.cat(rows, 0) * 255).round().byte().numpy()
    image = Image.fromarray(whole)
    image.resize((image.width * scale, image.height * scale)).save(path)
