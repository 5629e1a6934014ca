"""The autoregressive emoji model: a small Llama that reads a prompt and writes an image's codes.

Trained on new random scenes and captions at each step, to predict each of an image's tokens from
the prompt and the tokens before it. Text is read and not predicted. Beside that, a head that is
left out of the finished model reads the objects of the caption from the states of all image tokens:
by the next token alone, the model would learn an object's inside long before the words for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.emoji import checkpoint
from examples.emoji.captions import caption
from examples.emoji.sprites import names
from examples.emoji.tokens.codes import CODES, SIDE, codebook, latents, nearest, scenes
from examples.emoji.tokens.export import export
from examples.emoji.tokens.vocabulary import BEGIN, IMAGE, MOST, tokenizer
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 352
IMAGE_TOKENS = SIDE * SIDE
BATCH = 8
RATE = 4e-3
WARMUP = 40
PAIRS, PAIRS_AFTER = 0.5, 4000
"""Share of the scenes with two objects, and the step from which on it is that: it grows from none,
since the words of one object are learned sooner where there is no other."""
OBJECTS = 3.0
"""Weight of the loss of reading the caption's objects."""
EVERY_S = 60
"""Seconds between two checkpoints."""


def build(words: int, codes: Tensor | None = None) -> LlamaForCausalLM:
    """An untrained model whose tokens are `words` of text and, behind them, the codes, whose
    embeddings begin alike where their vectors `codes` are."""
    config = LlamaConfig(
        vocab_size=words + CODES,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MOST + IMAGE_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    if codes is not None:
        embeddings = model.get_input_embeddings().weight
        likeness = (codes - codes.mean(0)) / codes.std(0)
        with torch.no_grad():
            projected = likeness @ torch.randn(codes.shape[1], WIDTH) / codes.shape[1] ** 0.5
            embeddings[words:] += config.initializer_range * projected
    return model


class Trained(nn.Module):
    """What is trained: the model without its head, which is the embedding, and the head that reads
    the caption's objects from states after the layer before the last."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.body = model.model
        self.objects = nn.Linear(WIDTH, len(names()))


class Batch(NamedTuple):
    """Prompts `[rows, longest]`, padded on the left, their masks, the codes `[rows, IMAGE_TOKENS]`
    of the images, and which objects they have, `[rows, concepts]`."""

    ids: Tensor
    mask: Tensor
    codes: Tensor
    objects: Tensor


class Examples:
    """Captions and images as tokens, new ones for each step."""

    def __init__(self, vae: PatchAutoencoder, codes: Tensor, words: PreTrainedTokenizerFast):
        self._vae, self._codes, self._words = vae, codes, words

    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids `[texts, longest]`, padded on the left, and their mask."""
        ids = [
            self._words(f"{BEGIN} {text}{IMAGE}", add_special_tokens=False).input_ids
            for text in texts
        ]
        longest = max(map(len, ids))
        pad = self._words.pad_token_id
        rows = [[pad] * (longest - len(row)) + row for row in ids]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        return torch.tensor(rows), torch.tensor(mask)

    def batch(self, step: int) -> Batch:
        """The examples of a step."""
        rng = np.random.default_rng((6, step))
        drawn = scenes(BATCH, rng, PAIRS * min(1.0, step / PAIRS_AFTER))
        ids, mask = self.prompts([caption(scene, rng) for scene in drawn])
        codes = nearest(self._codes, latents(self._vae, drawn)).flatten(1)
        objects = torch.zeros(len(drawn), len(names()))
        for row, scene in zip(objects, drawn, strict=True):
            row[[placed.concept for placed in scene.objects]] = 1
        return Batch(ids, mask, codes, objects)


def losses_of(model: LlamaForCausalLM, trained: Trained, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean -log p of each image token, given the prompt and the image's tokens before it; and the
    binary cross-entropy of the caption's objects at each image token."""
    ids, mask, codes, objects = batch
    first = model.config.vocab_size - CODES
    tokens = torch.cat([ids, codes[:, :-1] + first], 1)
    whole = torch.cat([mask, torch.ones_like(codes[:, :-1])], 1)
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    states = model.model(
        tokens,
        attention_mask=whole,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    before = ids.shape[1] - 1
    logits = model.lm_head(states.last_hidden_state[:, before:])
    read = trained.objects(states.hidden_states[-2][:, before:])
    return (
        F.cross_entropy(logits.float().flatten(0, 1), codes.flatten() + first),
        F.binary_cross_entropy_with_logits(read.float(), objects[:, None].expand_as(read)),
    )


def optimizers_of(trained: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the layers, which learns from fewer images, and AdamW for all
    other parameters."""
    matrices = [p for name, p in trained.named_parameters() if p.ndim == 2 and "layers" in name]
    inside = {id(matrix) for matrix in matrices}
    others = [p for p in trained.parameters() if id(p) not in inside]
    return (
        torch.optim.Muon(matrices, RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )


def train(
    out: Path, vae: Path, weights: Path, steps: int, decay: float = 0.5, bf16: bool = False
) -> None:
    """Train for `steps` in all, or resume from the last checkpoint in `out`, and write the finished
    model to the folder `weights`; `vae` is that of the autoencoder.

    The rate is constant, and falls to zero over the last share `decay` of the steps; a run that was
    planned longer can be stopped and resumed with fewer steps, and then decays sooner. `bf16`
    computes in bfloat16 and keeps the weights in float32.
    """
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder.from_pretrained(vae, torch_dtype=torch.float32).eval()
    autoencoder.to(memory_format=torch.channels_last)
    words = tokenizer()
    codes = codebook(autoencoder, out)
    examples = Examples(autoencoder, codes, words)
    model = build(len(words), codes)
    trained = Trained(model)
    optimizers = optimizers_of(trained)
    states = [out / "tokens-muon.safetensors", out / "tokens.safetensors"]
    first = 0
    for state, optimizer in zip(states, optimizers, strict=True):
        first = checkpoint.resume(state, trained, optimizer)
    saved, losses = time.monotonic(), []
    for step in range(first, steps):
        lr = RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (decay * steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        batch = examples.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, reading = losses_of(model, trained, batch)
        trained.zero_grad()
        (loss + OBJECTS * reading).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append((float(loss.detach()), float(reading.detach())))
        if time.monotonic() - saved > EVERY_S or step + 1 == steps:
            saved = time.monotonic()
            for state, optimizer in zip(states, optimizers, strict=True):
                checkpoint.save(state, trained, optimizer, step + 1)
            recent, read = np.mean(losses[-100:], 0)
            print(
                f"step {step + 1}: loss {recent:.4f}, objects {read:.4f}, rate {lr:.2e}, "
                f"{time.process_time():.0f} s of processor time",
                flush=True,
            )
    export(model, words, codes, weights)
