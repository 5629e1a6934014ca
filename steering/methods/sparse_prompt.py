"""Sparse features out of the states of a text encoder: `x' = x - s Σ_i f_i(x) d_i` at each token.

Concept Steerers (arXiv 2501.19066) and SAeUron (arXiv 2501.18052) turn the features of a sparse
autoencoder by which a concept is told from others; there they act on every prompt, inside the text
encoder and after blocks of the denoiser. Here they act on the encoder's output, and a linear score
of the prompt decides whether (`prompt_score.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steering.hidden.bank import bounded
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.prompt_score import PromptGate, stacked_gate
from steering.methods.sparse_features import SparseFeatures, contributions
from steering.methods.subspaces import due_first, stacked


class SparsePromptGuards:
    """All guards of sparse features of a model's text encoders, stacked.

    `streams` has for each stream `reads` and `writes [guards, features, width]`, `offsets` and
    `cuts [guards, features]`, zeros where a guard has fewer.
    """

    def __init__(
        self, names: Sequence[str], streams: Mapping[str, Sequence[Tensor]], gate: PromptGate
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self._streams = streams
        self._gate = gate

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`: 1 where there is no gate, NaN for a row that is not finite."""
        return self._gate(text)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Take the features of the due guards out of the tokens; see `EmbeddingGuards.act`.

        What several guards take out of a token is joined as at the hidden seam
        (`steering.hidden.bank.bounded`): they may have features in common. There is no score
        afterwards.
        """
        rows = due.any(1).nonzero()[:, 0]
        guards, real = due_first(due[rows])
        by = strength[rows].gather(1, guards).masked_fill(~real, 0.0)
        changed = {}
        for name, stream in self._streams.items():
            before, mask = text.states[name][rows], text.masks[name][rows]
            x = before.float()
            change = contributions([part[guards] for part in stream], x[:, None])
            change = -by[..., None, None] * change
            total = bounded(change.sum(1), change.norm(dim=-1).amax(1))
            moved = mask & (total != 0).any(-1)
            states = text.states[name].clone()
            states[rows] = torch.where(moved[..., None], (x + total).to(before.dtype), before)
            changed[name] = states
        return Refinement(
            text.with_states(changed), due.any(1).long(), torch.full_like(strength, torch.nan)
        )


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SparsePromptGuards:
    """From artifacts, as `guard fit sparse-prompt` writes them. Raises ValueError naming a fault.

    Tensors, for each of the guard's `streams`: `reads.STREAM` and `writes.STREAM [features,
    width]`, `offsets.STREAM` and `cuts.STREAM [features]`; `weights.STREAM` of the gate.
    """
    names = dict.fromkeys(stream for guard in guards for stream in guard.streams)
    streams = {name: [part.to(device) for part in _stream(guards, name)] for name in names}
    return SparsePromptGuards(
        [guard.name for guard in guards], streams, stacked_gate(guards, device)
    )


def _stream(guards: Sequence[FittedGuard], name: str) -> Sequence[Tensor]:
    """Reads, offsets, cuts and writes of all guards on one stream."""
    parts: list[Sequence[Tensor | None]] = []
    for guard in guards:
        if name not in guard.streams:
            parts.append((None,) * 4)
            continue
        with faults_of(guard.name):
            parts.append(SparseFeatures.of(guard, name).parts)
    reads, offsets, cuts, writes = zip(*parts, strict=True)
    if len({part.shape[1] for part in reads if part is not None}) > 1:
        raise ValueError(f"the guards' tensors reads.{name} are of different widths")
    columns = ([None if p is None else p[:, None] for p in part] for part in (offsets, cuts))
    offset, cut = (stacked(part)[..., 0] for part in columns)
    return stacked(reads), offset, cut, stacked(writes)
