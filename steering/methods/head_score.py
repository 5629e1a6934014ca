"""The score of a prompt by light classifiers on the text encoders' token states (CGCE's heads).

A guard's score is the logit of p(concept): the mean of its classifiers on a stream, the largest of
all streams. CGCE senses by it, and any other guard of an image model may take it as its gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classifiers.heads import PARTS, Heads, stacked
from classifiers.onnx import Detector
from steering.images.conditioning import Conditioning
from steering.methods.fitted import FittedGuard, faults_of


@dataclass(frozen=True, eq=False)
class StreamHeads:
    """All guards' heads on one stream: head i belongs to guard `owner[i]`, of so many `guards`."""

    heads: Heads
    owner: Tensor
    guards: int
    detector: Detector | None

    def logits(self, states: Tensor) -> Tensor:
        """`[rows, heads]`, computed by ONNX Runtime where no gradient is needed."""
        if self.detector is None or (states.requires_grad and torch.is_grad_enabled()):
            return self.heads(states)
        return torch.from_numpy(self.detector(states.detach().numpy()))

    def of_guards(self, logits: Tensor, how: str) -> Tensor:
        """The logit of each guard over its members, by "mean" or "amax"; -inf for a guard without
        members on this stream."""
        blank = logits.new_full((len(logits), self.guards), -torch.inf)
        index = self.owner.expand(len(logits), -1)
        return blank.scatter_reduce(1, index, logits, how, include_self=False)

    def of_due(self, due: Tensor) -> StreamHeads:
        """Those of guards that are `due [rows, guards]` in some row, for passes with gradients."""
        members = due.any(0)[self.owner].nonzero()[:, 0]
        return StreamHeads(self.heads.select(members), self.owner[members], self.guards, None)


class HeadScore:
    """The scores of several guards, stacked."""

    def __init__(self, streams: Mapping[str, StreamHeads]) -> None:
        self._streams = dict(streams)

    def __call__(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`, differentiable: -inf for a guard without heads, NaN for a row
        that is not finite."""
        scores = [
            heads.of_guards(heads.logits(text.states[stream].float()), "mean")
            for stream, heads in self._streams.items()
        ]
        return torch.stack(scores).amax(0).masked_fill(~text.finite()[:, None], torch.nan)


def stream_heads(
    guards: Sequence[FittedGuard | None], key: str, device: torch.device | str
) -> dict[str, StreamHeads]:
    """The heads of artifacts by stream; the setting `key` of each names those that it has heads on,
    and None stands for a guard without heads. Raises ValueError naming the fault of a guard."""
    members: dict[str, list[tuple[int, Heads]]] = {}
    for i, guard in enumerate(guards):
        if guard is None:
            continue
        for stream in guard.names(key):
            members.setdefault(stream, []).append((i, _heads(guard, stream)))
    at = torch.device(device)
    streams = {}
    for stream, of_stream in members.items():
        heads = stacked([heads for _, heads in of_stream])
        streams[stream] = StreamHeads(
            heads=heads.to(at),
            owner=torch.tensor([i for i, heads in of_stream for _ in range(len(heads))], device=at),
            guards=len(guards),
            detector=Detector(heads) if at.type == "cpu" else None,
        )
    return streams


def _heads(guard: FittedGuard, stream: str) -> Heads:
    dims = {"queries": 3, "hidden": 3, "hidden_bias": 2, "out": 2, "out_bias": 1}
    with faults_of(guard.name):
        return Heads(**{part: guard.tensor(part, stream, dims[part]) for part in PARTS})
