"""How likely answers to prompts with images are, as a function of the images' pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.vision.pixels import DifferentiablePixels
from steering.engines.transformers.whole_sequences import BranchingSequences
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.hidden.seam import HiddenSeam
from steering.prompt import Prompt

EVADE = 4.0
"""Weight of the gates' excess over their thresholds, as a share of that of the first images."""


class Recall:
    """-log p of answers, the mean over the tokens of each, to prompts with one image each.

    With a `bank` the guards `guards` are on every row: they act on the answers as in the engine,
    and EVADE times the share that is left of their gates' excess is added. Decisions are those of
    the guards' own table; the changes that follow from them, and the gates' scores, are
    differentiated exactly. Hooks the model until `close`.
    """

    def __init__(
        self,
        model: Any,
        preprocessing: DifferentiablePixels,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> None:
        self._model, self._preprocessing = model, preprocessing
        self._bank, self._guards = bank, guards
        device = next(model.parameters()).device
        rows = [(*prompt.tokens, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        longest, self._kept = max(map(len, rows)), max(map(len, answers)) + 1
        # left padding: the answers end in the last column
        ids, real = torch.zeros(2, len(rows), longest, dtype=torch.long)
        share = torch.zeros(len(rows), self._kept - 1)
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            ids[i, longest - len(row) :], real[i, longest - len(row) :] = torch.tensor(row), 1
            share[i, self._kept - 1 - len(answer) :] = 1.0 / max(len(answer), 1)
        self._ids, self._real, self._share = ids.to(device), real.to(device), share.to(device)
        places = np.arange(len(rows) * longest).reshape(len(rows), longest)
        self._places = [
            place[longest - len(row) :] for place, row in zip(places, rows, strict=True)
        ]
        self._prompts = [len(prompt) for prompt in prompts]
        image = prompts[0].media[0]
        # the placeholder tokens, as the engine marks them
        self._image = self._ids == prompts[0].tokens[image.start]
        self._whole: Tensor | None = None
        """The excess of the images of the first call, `[rows]`."""
        self._seam = HiddenSeam(list(decoder_layers(model)))
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in self._trained:
            weight.requires_grad_(False)
        if bank is not None:
            self._seam.install(bank.layers)

    def __enter__(self) -> Recall:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks; the weights take gradients as before."""
        self._seam.remove()
        for weight in self._trained:
            weight.requires_grad_(True)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The losses `[rows]` of pixels `[rows, height, width, 3]`, float in 0..255, with the graph
        where gradients are on."""
        if self._bank is None:
            return self._losses(pixels)
        shape = tuple(self._ids.shape)
        table = BranchingSequences(
            self._bank, self._guards, self._places, self._prompts, shape, self._image
        )
        with self._seam.consulting(table):
            losses = self._losses(pixels)
        excess = table.excess(range(shape[0])).clamp(min=0).sum(1)
        if self._whole is None:
            self._whole = excess.detach().clamp(min=1e-6)
        return losses + EVADE * excess / self._whole

    def _losses(self, pixels: Tensor) -> Tensor:
        inputs = {
            name: value.to(self._ids.device)
            for name, value in self._preprocessing.inputs(pixels).items()
        }
        logits = self._model(
            input_ids=self._ids,
            attention_mask=self._real,
            use_cache=False,
            logits_to_keep=self._kept,
            **inputs,
        ).logits[:, :-1]
        answer = self._ids[:, 1 - self._kept :]
        losses = cross_entropy(logits.float().transpose(1, 2), answer, reduction="none")
        return (losses * self._share).sum(1)
