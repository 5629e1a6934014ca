"""The attention seam: how much the places of an image attend to given tokens, whatever is asked.

A cross-attention layer has projected the image's places to queries already. They are read where
the layer makes them and multiplied with the keys of a few tokens that were projected once: one
`[places, width] x [width, tokens]` product of one head. The layer's own attention runs as it does,
by whatever kernel: its map is neither built nor needed. In joint attention (SD3, Flux) the queries
are those of the image's own tokens and the keys those of the text. Positions that a layer turns
its queries and keys by (RoPE) are left out: what is asked is what a place shows, not where it is.
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
    """A linear layer of an attention module, and which of its equal parts is wanted."""

    module: nn.Module
    part: int
    of: int
    norm: Any
    heads: int

    @property
    def width(self) -> int:
        """Of one head."""
        return int(self.module.out_features) // (self.of * self.heads)  # type: ignore[arg-type]

    def heads_of(self, output: Tensor) -> Tensor:
        """`[rows, tokens, heads, width]` of what the layer has given, as attention takes them."""
        wanted = output.chunk(self.of, -1)[self.part]
        whole = self.norm is not None and _normalised(self.norm) == wanted.shape[-1]
        if whole:
            wanted = self.norm(wanted)
        apart = wanted.reshape(*wanted.shape[:-1], self.heads, -1)
        if self.norm is not None and not whole:
            apart = self.norm(apart)
        return apart


@torch.no_grad()
def text_keys(family: Family, text: Conditioning, timestep: float) -> dict[str, Tensor]:
    """The keys of one row's tokens at every readable layer, `[tokens, heads, width]`, float32.

    Found by one pass of the network over noise: in joint attention the text's states depend on
    what comes before a layer. Raises ValueError naming a layer that does not say its keys.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in family.readable.items():
        projection = _keys(module)

        def keep(_m: nn.Module, _i: Any, out: Tensor, n: str = name, p: Any = projection) -> None:
            found[n] = p.heads_of(out)[0].float()

        hooks.append(projection.module.register_forward_hook(keep))
    try:
        _run_once(family, text, timestep)
    finally:
        for hook in hooks:
            hook.remove()
    if silent := sorted(set(family.readable) - set(found)):
        raise ValueError(_hidden(silent[0], "keys"))
    return found


def _run_once(family: Family, text: Conditioning, timestep: float) -> None:
    device = family.device
    family.predict(
        family.noise([0]),
        torch.full((1,), timestep, device=device),
        text.map(lambda tensor: tensor.to(device)),
        torch.ones(1, device=device),
    )


def _hidden(layer: str, what: str) -> str:
    return (
        f"the attention processor of {layer} hides its {what}: use one of diffusers' own, and fuse "
        "projections by the model's fuse_qkv_projections()"
    )


def require_reads(modules: Mapping[str, nn.Module], reads: Sequence[AttentionProbe]) -> None:
    """Raise ValueError for a read that is none of `modules`, a family's `readable` ones."""
    for read in reads:
        if read.layer not in modules:
            raise ValueError(f"the model has no layer {read.layer!r} whose attention can be read")
        projection = _queries(modules[read.layer])
        if read.head >= projection.heads:
            raise ValueError(
                f"{read.layer} has {projection.heads} heads, none of number {read.head}"
            )
        widths = {read.keys.shape[-1], read.others.shape[-1]}
        if widths != {projection.width}:
            raise ValueError(
                f"{read.layer} has keys of {projection.width} numbers a head, not of "
                f"{', '.join(map(str, sorted(widths)))}"
            )


class AttentionSeam:
    """Hooks that read the queries of a network's rows: a `RowSeam` of `forwards.py`.

    Before the forwards of a step it is told which rows are to be read (`ask`), after them it has
    the `scores`. Where nothing is asked the hooks do nothing. Raises ValueError for a layer that
    cannot be read, or a head that it does not have.
    """

    def __init__(self, family: Family, reads: Sequence[AttentionProbe]) -> None:
        modules = family.readable
        require_reads(modules, reads)
        self._shape, self._device = family.shape[1:], family.device
        self._layers: list[_Layer] = []
        self._place: dict[int, tuple[int, int]] = {}
        """Of each read: its layer, and its number there."""
        self._handles: list[Any] = []
        try:
            self._attach(modules, reads)
            self._prove(family)
        except BaseException:
            self.remove()
            raise
        self.ask([], [])

    def _attach(self, modules: Mapping[str, nn.Module], reads: Sequence[AttentionProbe]) -> None:
        for name in dict.fromkeys(read.layer for read in reads):
            own = [number for number, read in enumerate(reads) if read.layer == name]
            self._place |= {number: (len(self._layers), i) for i, number in enumerate(own)}
            layer = _Layer(_queries(modules[name]), [reads[i] for i in own], name, self._device)
            hook = layer.projection.module.register_forward_hook(self._hook(len(self._layers)))
            self._layers.append(layer)
            self._handles.append(hook)

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def ask(self, rows: Sequence[int], reads: Sequence[int]) -> None:
        """In the forwards to come, do the reads `reads[i]` of the network's rows `rows[i]`."""
        self._rows = rows
        self._found: list[tuple[Sequence[int], Tensor]] = []
        """What a layer has said in a forward, `[n, places]`, and of which that were asked."""
        self._wanted: dict[int, list[tuple[int, int]]] = {}
        """Layer → what was asked of it, by its number in what was asked and that of its read."""
        for i, read in enumerate(reads):
            layer, number = self._place[read]
            self._wanted.setdefault(layer, []).append((i, number))
        self._at: dict[int, int] = {}

    def enter(self, rows: Tensor) -> None:
        """See RowSeam."""
        # a forward that is filled up has its last row more than once
        self._at = {row: i for i, row in enumerate(rows.tolist())} if self._wanted else {}

    def leave(self) -> None:
        """See RowSeam."""
        self._at = {}

    def scores(self) -> Tensor:
        """Of each that was asked, `[asked, (frames,) height, width]` on the latents' grid, float32.

        How much more of a place's attention goes to the tokens looked for than to the others, as
        the difference of both log-sum-exps. Raises RuntimeError where a layer was not run.
        """
        if len(self._answered()) != len(self._rows):
            raise RuntimeError("a layer whose attention is to be read has not been run")
        scores = torch.zeros(len(self._rows), *self._shape, device=self._device)
        for asked, said in self._found:
            scores[list(asked)] = _on_grid(said, self._shape)
        return scores

    def _answered(self) -> set[int]:
        return {i for asked, _ in self._found for i in asked}

    @torch.no_grad()
    def _prove(self, family: Family) -> None:
        """See once that every layer's queries come by, and are those of a grid of places."""
        first = {layer: read for read, (layer, number) in self._place.items() if number == 0}
        if not first:
            return
        self.ask([0] * len(first), [*first.values()])
        self.enter(torch.zeros(1, dtype=torch.long))
        _run_once(family, family.unconditional([""]), 0.0)
        self.leave()
        answered = self._answered()
        if hidden := [layer for i, layer in enumerate(first) if i not in answered]:
            raise ValueError(_hidden(self._layers[hidden[0]].name, "queries"))
        self.scores()

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            due = [
                (i, self._at[self._rows[i]], number)
                for i, number in self._wanted.get(layer, ())
                if self._rows[i] in self._at
            ]
            if due:
                asked, rows, reads = zip(*due, strict=True)
                self._found.append((asked, self._layers[layer].scores(output, rows, reads)))

        return hook


class _Layer:
    """The reads of one layer, stacked."""

    def __init__(
        self,
        projection: _Projection,
        reads: Sequence[AttentionProbe],
        name: str,
        device: torch.device,
    ) -> None:
        width = projection.width
        self.projection, self.name = projection, name
        self._heads = torch.tensor([read.head for read in reads], device=device)
        longest = [max(len(getattr(read, name)) for read in reads) for name in ("keys", "others")]
        self._split = longest[0]
        self._keys = torch.zeros(len(reads), sum(longest), width, device=device)
        self._real = torch.zeros(len(reads), sum(longest), dtype=torch.bool, device=device)
        for i, read in enumerate(reads):
            for first, tokens in ((0, read.keys), (longest[0], read.others)):
                self._keys[i, first : first + len(tokens)] = tokens / math.sqrt(width)
                self._real[i, first : first + len(tokens)] = True

    def scores(self, output: Tensor, rows: Sequence[int], reads: Sequence[int]) -> Tensor:
        """`[asked, places]` of what the layer's projection has given."""
        queries = self.projection.heads_of(output)
        number = torch.tensor(reads, device=output.device)
        row = torch.tensor(rows, device=output.device)
        own = queries[row, :, self._heads[number]].float()
        logits = own @ self._keys[number].transpose(1, 2)
        logits = logits.masked_fill(~self._real[number][:, None], -torch.inf)
        looked, told = logits[..., : self._split], logits[..., self._split :]
        return looked.logsumexp(-1) - told.logsumexp(-1)


def _on_grid(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[n, places]` of a layer whose grid is coarser by a whole factor, as `[n, *shape]`."""
    height, width = shape[-2:]
    frames = math.prod(shape[:-2])
    grid = coarser((height, width), scores.shape[1] // frames)
    apart = scores.reshape(len(scores) * frames, 1, *grid)
    fine = F.interpolate(apart, size=(height, width), mode="bilinear", align_corners=False)
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
    """The width that a norm works on."""
    shape = getattr(norm, "normalized_shape", None) or norm.dim
    return int(shape[-1])
