"""The attention seam: how much the positions of an image attend to given tokens, for any prompt.

A cross-attention layer projects the positions of the image to queries. Hooks read them there and
multiply them with the keys of a few tokens that were projected once: one `[places, width] x [width,
tokens]` product of one head. The attention of the layer runs unchanged, by whatever kernel: its map
is neither built nor needed. In joint attention (SD3, Flux) the queries are those of the image's
tokens and the keys those of the text. The rotation of queries and keys by position (RoPE) is left
out: the scores are about the content of a position, not about where it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from steering.images.latent import AttentionProbe, coarser


@dataclass(frozen=True)
class _Projection:
    """Part `part` of the `parts` equal parts of the output of a linear layer of attention."""

    module: nn.Module
    part: int
    parts: int
    norm: Any
    heads: int

    @property
    def width(self) -> int:
        """The width of one head."""
        return int(self.module.out_features) // (self.parts * self.heads)  # type: ignore[arg-type]

    def heads_of(self, output: Tensor) -> Tensor:
        """The part of the layer's output by head, normalised: `[rows, tokens, heads, width]`."""
        part = output.chunk(self.parts, -1)[self.part]
        across_heads = self.norm is not None and _normalised(self.norm) == part.shape[-1]
        if across_heads:
            part = self.norm(part)
        heads = part.reshape(*part.shape[:-1], self.heads, -1)
        if self.norm is not None and not across_heads:
            heads = self.norm(heads)
        return heads


@torch.no_grad()
def text_keys(family: Family, text: Conditioning, timestep: float) -> dict[str, Tensor]:
    """The keys of one row's tokens at every readable layer, `[tokens, heads, width]`, float32.

    They come from one forward of the network over noise: in joint attention the states of the text
    depend on the layers before. Raises ValueError naming a layer whose keys cannot be read.
    """
    keys: dict[str, Tensor] = {}
    hooks = []
    for name, module in family.readable.items():
        projection = _keys(module)

        def keep(_m: nn.Module, _i: Any, out: Tensor, n: str = name, p: Any = projection) -> None:
            keys[n] = p.heads_of(out)[0].float()

        hooks.append(projection.module.register_forward_hook(keep))
    try:
        _run_once(family, text, timestep)
    finally:
        for hook in hooks:
            hook.remove()
    if hidden := sorted(set(family.readable) - set(keys)):
        raise ValueError(_hidden_message(hidden[0], "keys"))
    return keys


def _run_once(family: Family, text: Conditioning, timestep: float) -> None:
    device = family.device
    family.predict(
        family.noise([0]),
        torch.full((1,), timestep, device=device),
        text.map(lambda tensor: tensor.to(device)),
        torch.ones(1, device=device),
    )


def _hidden_message(layer: str, tensors: str) -> str:
    return (
        f"the attention processor of {layer} hides its {tensors}: use one of diffusers' own, and "
        "fuse projections by the model's fuse_qkv_projections()"
    )


def require_probes(modules: Mapping[str, nn.Module], probes: Sequence[AttentionProbe]) -> None:
    """Raise ValueError for a probe that does not fit `modules`, a family's `readable` layers."""
    for probe in probes:
        if probe.layer not in modules:
            raise ValueError(f"the model has no layer {probe.layer!r} whose attention can be read")
        projection = _queries(modules[probe.layer])
        if probe.head >= projection.heads:
            raise ValueError(
                f"{probe.layer} has {projection.heads} heads, none of number {probe.head}"
            )
        widths = {probe.keys.shape[-1], probe.others.shape[-1]}
        if widths != {projection.width}:
            raise ValueError(
                f"{probe.layer} has keys of {projection.width} numbers a head, not of "
                f"{', '.join(map(str, sorted(widths)))}"
            )


class AttentionSeam:
    """Hooks that read the queries of a network's rows: a `RowSeam` of `forwards.py`.

    `request` names the rows to read before the forwards of a step, and `scores` has the result
    after them. Without a request the hooks do nothing. Raises ValueError for a layer that cannot be
    read, or a head that it does not have.
    """

    def __init__(self, family: Family, probes: Sequence[AttentionProbe]) -> None:
        modules = family.readable
        require_probes(modules, probes)
        self._shape, self._device = family.shape[1:], family.device
        self._layers: list[_Layer] = []
        self._index: dict[int, tuple[int, int]] = {}
        """Number of a probe → its layer, and its number there."""
        self._handles: list[Any] = []
        try:
            self._attach(modules, probes)
            self._require_queries(family)
        except BaseException:
            self.remove()
            raise
        self.request([], [])

    def _attach(self, modules: Mapping[str, nn.Module], probes: Sequence[AttentionProbe]) -> None:
        for name in dict.fromkeys(probe.layer for probe in probes):
            numbers = [number for number, probe in enumerate(probes) if probe.layer == name]
            self._index |= {number: (len(self._layers), i) for i, number in enumerate(numbers)}
            layer = _Layer(
                _queries(modules[name]), [probes[i] for i in numbers], name, self._device
            )
            hook = layer.projection.module.register_forward_hook(self._hook(len(self._layers)))
            self._layers.append(layer)
            self._handles.append(hook)

    def remove(self) -> None:
        """Take every hook off the network."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def request(self, rows: Sequence[int], probes: Sequence[int]) -> None:
        """Read the probes of numbers `probes[i]` on the network's rows `rows[i]` from now on."""
        self._rows = rows
        self._results: list[tuple[Sequence[int], Tensor]] = []
        """Scores of one layer in one forward, `[n, places]`, and the numbers of their requests."""
        self._requests: dict[int, list[tuple[int, int]]] = {}
        """Layer → its requests: the number of the request, and that of its probe in the layer."""
        for i, probe in enumerate(probes):
            layer, number = self._index[probe]
            self._requests.setdefault(layer, []).append((i, number))
        self._at: dict[int, int] = {}

    def enter(self, rows: Tensor) -> None:
        """See RowSeam."""
        # a forward that is filled up has its last row more than once
        self._at = {row: i for i, row in enumerate(rows.tolist())} if self._requests else {}

    def leave(self) -> None:
        """See RowSeam."""
        self._at = {}

    def scores(self) -> Tensor:
        """The scores of all requests, `[requests, (frames,) height, width]` on the latents' grid,
        float32.

        A score is the share of a position's attention that goes to the probe's tokens against that
        of its other tokens, as the difference of both log-sum-exps. Raises RuntimeError if a layer
        has not run.
        """
        if len(self._completed()) != len(self._rows):
            raise RuntimeError("a layer whose attention is to be read has not been run")
        scores = torch.zeros(len(self._rows), *self._shape, device=self._device)
        for requests, layer_scores in self._results:
            scores[list(requests)] = _on_grid(layer_scores, self._shape)
        return scores

    def _completed(self) -> set[int]:
        return {i for requests, _ in self._results for i in requests}

    @torch.no_grad()
    def _require_queries(self, family: Family) -> None:
        """Run the network once; raise ValueError if a layer's queries do not reach its hook, or are
        not those of a grid of positions."""
        first = {layer: probe for probe, (layer, number) in self._index.items() if number == 0}
        if not first:
            return
        self.request([0] * len(first), [*first.values()])
        self.enter(torch.zeros(1, dtype=torch.long))
        _run_once(family, family.unconditional([""]), 0.0)
        self.leave()
        completed = self._completed()
        if hidden := [layer for i, layer in enumerate(first) if i not in completed]:
            raise ValueError(_hidden_message(self._layers[hidden[0]].name, "queries"))
        self.scores()

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            due = [
                (i, self._at[self._rows[i]], number)
                for i, number in self._requests.get(layer, ())
                if self._rows[i] in self._at
            ]
            if due:
                requests, rows, probes = zip(*due, strict=True)
                scores = self._layers[layer].scores(output, rows, probes)
                self._results.append((requests, scores))

        return hook


class _Layer:
    """The probes of one layer, stacked."""

    def __init__(
        self,
        projection: _Projection,
        probes: Sequence[AttentionProbe],
        name: str,
        device: torch.device,
    ) -> None:
        width = projection.width
        self.projection, self.name = projection, name
        self._heads = torch.tensor([probe.head for probe in probes], device=device)
        longest = [
            max(len(getattr(probe, name)) for probe in probes) for name in ("keys", "others")
        ]
        self._split = longest[0]
        self._keys = torch.zeros(len(probes), sum(longest), width, device=device)
        self._real = torch.zeros(len(probes), sum(longest), dtype=torch.bool, device=device)
        for i, probe in enumerate(probes):
            for first, tokens in ((0, probe.keys), (longest[0], probe.others)):
                self._keys[i, first : first + len(tokens)] = tokens / math.sqrt(width)
                self._real[i, first : first + len(tokens)] = True

    def scores(self, output: Tensor, rows: Sequence[int], probes: Sequence[int]) -> Tensor:
        """`[requests, places]` from the output of the layer's projection."""
        queries = self.projection.heads_of(output)
        number = torch.tensor(probes, device=output.device)
        row = torch.tensor(rows, device=output.device)
        queries_of_head = queries[row, :, self._heads[number]].float()
        logits = queries_of_head @ self._keys[number].transpose(1, 2)
        logits = logits.masked_fill(~self._real[number][:, None], -torch.inf)
        tokens, others = logits[..., : self._split], logits[..., self._split :]
        return tokens.logsumexp(-1) - others.logsumexp(-1)


def _on_grid(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scores `[n, places]` of a layer whose grid is coarser by a whole factor, as `[n, *shape]`."""
    height, width = shape[-2:]
    frames = math.prod(shape[:-2])
    grid = coarser((height, width), scores.shape[1] // frames)
    coarse = scores.reshape(len(scores) * frames, 1, *grid)
    fine = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return fine.view(len(scores), *shape)


def _is_joint(module: nn.Module) -> bool:
    return getattr(module, "add_k_proj", None) is not None and not getattr(
        module, "is_cross_attention", False
    )


def _queries(module: Any) -> _Projection:
    fused = getattr(module, "fused_projections", False) and hasattr(module, "to_qkv")
    norm = getattr(module, "norm_q", None)
    if fused:
        return _Projection(module.to_qkv, 0, 3, norm, module.heads)
    return _Projection(module.to_q, 0, 1, norm, module.heads)


def _keys(module: Any) -> _Projection:
    fused = getattr(module, "fused_projections", False)
    if _is_joint(module):
        norm = getattr(module, "norm_added_k", None)
        if fused and hasattr(module, "to_added_qkv"):
            return _Projection(module.to_added_qkv, 1, 3, norm, module.heads)
        return _Projection(module.add_k_proj, 0, 1, norm, module.heads)
    norm = getattr(module, "norm_k", None)
    if fused and hasattr(module, "to_kv"):
        return _Projection(module.to_kv, 0, 2, norm, module.heads)
    return _Projection(module.to_k, 0, 1, norm, module.heads)


def _normalised(norm: Any) -> int:
    """The width that a norm normalises over."""
    shape = getattr(norm, "normalized_shape", None) or norm.dim
    return int(shape[-1])
