"""Images that a language model writes: how their tokens are sampled, and the pixels that they mean.

The folder of such a model has, beside the files of a language model, the file IMAGE_TOKENS and the
folder of an autoencoder. A token of an image is the number of one of the codebook's vectors, which
stand behind the tokens of text in the vocabulary; an image is `rows * columns` of them, row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.tokens import PromptTokenizer
from steering.fingerprint import fingerprint
from steering.prompt import Prompt

IMAGE_TOKENS = "image_tokens.json"
AUTOENCODER = "image_decoder"
CODEBOOK = "codebook.safetensors"


def writes_images(folder: Path) -> bool:
    """Whether the model in a folder writes images."""
    return (folder / IMAGE_TOKENS).is_file()


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The images of one model: `codes [codes, channels]` are the vectors of its tokens from `first`
    on, which `autoencoder` decodes. `temperature` and `top_p` are those of its sampling."""

    autoencoder: Any
    codes: Tensor
    first: int
    rows: int
    columns: int
    temperature: float
    top_p: float

    @classmethod
    def load(cls, folder: Path, vocabulary: int, device: torch.device | str) -> ImageTokens:
        """From the folder of a model with this `vocabulary`. Raises ValueError where a file is
        missing or does not fit, and ImportError without diffusers."""
        # imported here: diffusers is of another extra
        from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

        try:
            settings = json.loads((folder / IMAGE_TOKENS).read_text("utf-8"))
            codes = load_file(folder / AUTOENCODER / CODEBOOK)["codes"].float()
            rows, columns = (int(settings[name]) for name in ("rows", "columns"))
            sampling = {name: float(settings[name]) for name in ("temperature", "top_p")}
            autoencoder = PatchAutoencoder.from_pretrained(folder / AUTOENCODER)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: its image tokens cannot be read: {error}") from error
        channels = autoencoder.config.latent_channels
        if codes.ndim != 2 or codes.shape[1] != channels or len(codes) >= vocabulary:
            raise ValueError(
                f"{folder}: its codebook has the shape {list(codes.shape)}: there is no room for "
                f"that in a vocabulary of {vocabulary}, or in latents of {channels} channels"
            )
        if min(rows, columns) < 1 or not codes.isfinite().all():
            raise ValueError(
                f"{folder}: its image tokens have no size, or codes that are no numbers"
            )
        if sampling["temperature"] <= 0 or not 0 < sampling["top_p"] <= 1:
            raise ValueError(
                f"{folder}: its sampling needs a temperature over 0 and a top_p over 0, up to 1"
            )
        return cls(
            autoencoder.eval().requires_grad_(False).to(device),
            codes.to(device),
            vocabulary - len(codes),
            rows,
            columns,
            **sampling,
        )

    @property
    def count(self) -> int:
        """Number of tokens of an image."""
        return self.rows * self.columns

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of an image in pixels."""
        scale = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        return scale * self.columns, scale * self.rows

    @cached_property
    def identity(self) -> str:
        """A digest of all of it: other tokens or other pixels of a seed are another one."""
        digest = hashlib.sha256(self.codes.cpu().numpy().tobytes())
        sampled = (self.first, self.rows, self.columns, self.temperature, self.top_p)
        digest.update(f"{sampled} {fingerprint(self.autoencoder)}".encode())
        return digest.hexdigest()

    def prompt(self, tokenizer: PromptTokenizer, text: str) -> Prompt:
        """The prompt of a text, behind which an image begins. Raises ValueError as
        `PromptTokenizer.chat`."""
        return Prompt(tuple(tokenizer.chat([{"role": "user", "content": text}])))

    def sampling(self, seed: int) -> RowSampling:
        """How the tokens of an image are sampled: from those of images alone."""
        return RowSampling(
            temperature=self.temperature, top_p=self.top_p, seed=seed, logit_bias=self._no_words
        )

    @cached_property
    def _no_words(self) -> tuple[tuple[int, float], ...]:
        return tuple((token, -torch.inf) for token in range(self.first))

    @torch.inference_mode()
    def pixels(self, images: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
        """Images `[images, height, width, 3]` of `count` tokens each."""
        tokens = torch.tensor(images, device=self.codes.device) - self.first
        latents = self.codes[tokens].view(len(images), self.rows, self.columns, -1)
        decoded = self.autoencoder.decode(latents.permute(0, 3, 1, 2)).sample
        pixels = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        array: NDArray[np.uint8] = (255 * pixels).round().byte().cpu().numpy()
        return array
