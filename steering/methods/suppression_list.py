"""A suppression list: thousands of steering gates as one guard, of which the nearest one counts.

Each entry (a person, say) has a gate as in `steering.methods.steer`, in units in which an innocent
prompt scores about 0 and one about the entry about 1. The score of a token is that of the entry
with the highest one, that of a request its highest token's. A request carries the list as one
guard, however many entries it has.

Not all gates are multiplied with all tokens. States are projected to a few dimensions, in which
names differ most from each other; the entries whose mean states are nearest there are the
candidates, and their gates alone are multiplied in full. A state that is far from the candidate's
loses by its distance: gates have been taught by few names, and may answer to a strange one.

A score says which entry it is of: it is a multiple of 2^-23, its last ENTRY_BITS bits are the
entry's number and the others the score in steps of 2^-8. Float32 holds all of that exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import NoRoom, Placement, Room
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.schedules import Schedules, scheduled_directions

ENTRY_BITS = 15
MOST_ENTRIES = 2**ENTRY_BITS
HIGHEST = 2.0
"""Scores from here on count as the same."""
PENALTY = 0.2
"""What a score loses for each square of the radius that its state is farther away than that."""
BLOCKS = 8
"""Groups of entries; the best of each is a candidate."""
TOKENS_AT_ONCE = 1024
"""Tokens of a long forward are scored so many at a time, for the memory of their products."""

_UNIT = 2.0**-23
_STEP = _UNIT * MOST_ENTRIES


def entry_of(score: float) -> int:
    """The number of the entry that a score is of."""
    number: int = round(score / _UNIT) % MOST_ENTRIES
    return number


@dataclass(frozen=True)
class SuppressionList:
    """The tensors of one list, float32: `gates [entries, sense layers, width]` and `bias [entries]`
    in units of the entries; the `projection [sense layers, width, dimensions]` of states, and
    the projected mean states `centres [entries, dimensions]`, around which states of their entries
    lie within `radius`, a squared distance; `directions [steps, act layers, width]` as those of a
    steering guard, with `rest`.

    Raises ValueError for tensors of other shapes, and for too many entries.
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    bias: Tensor
    projection: Tensor
    centres: Tensor
    radius: float
    act_layers: tuple[int, ...]
    directions: Tensor
    rest: int

    def __post_init__(self) -> None:
        entries, layers, width = self.gates.shape
        dimensions = self.centres.shape[-1]
        for name, tensor, shape in (
            ("gates", self.gates, (entries, len(self.sense_layers), width)),
            ("bias", self.bias, (entries,)),
            ("projection", self.projection, (layers, width, dimensions)),
            ("centres", self.centres, (entries, dimensions)),
            ("directions", self.directions[0], (len(self.act_layers), width)),
        ):
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"guard {self.name}: {name} must be {list(shape)}, not {list(tensor.shape)}"
                )
        if not self.radius > 0:
            raise ValueError(f"guard {self.name}: radius must be over 0, not {self.radius}")
        if entries > MOST_ENTRIES:
            raise ValueError(
                f"guard {self.name}: has {entries} entries, a list takes {MOST_ENTRIES} at most"
            )

    @property
    def placement(self) -> Placement:
        """Raises ValueError for an impossible placement."""
        with faults_of(self.name):
            return Placement(
                self.sense_layers, self.act_layers, len(self.directions), rest=self.rest
            )


class SuppressionLists:
    """All suppression lists of one model, stacked: a `HiddenGuards`.

    The states after the first sensing layers are kept until the last one, in the same forward; a
    score without them is NaN. Raises ValueError for lists that sense at different layers.
    """

    def __init__(
        self, lists: Sequence[SuppressionList], device: torch.device | str = "cpu"
    ) -> None:
        self.names: Sequence[str] = tuple(each.name for each in lists)
        self.placements: Sequence[Placement] = tuple(each.placement for each in lists)
        if len({each.sense_layers for each in lists}) > 1:
            raise ValueError("the suppression lists of a stack must sense at the same layers")
        self._layers = sorted(lists[0].sense_layers)
        self.width = lists[0].gates.shape[-1]
        self._lists = [_Scorer.of(each, self._layers, device) for each in lists]
        self._schedules = Schedules(lists, device)
        self._earlier: dict[int, Tensor] = {}

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """See `HiddenGuards.sense`; all of a list's score comes at its last sensing layer."""
        count = len(self._lists) if columns is None else len(columns)
        scores = states.new_zeros(*states.shape[:-1], count)
        if layer not in self._layers:
            return scores
        if layer != self._layers[-1]:
            self._earlier[layer] = states
            return scores
        parts = [*(self._earlier.pop(at, None) for at in self._layers[:-1]), states]
        if any(part is None or part.shape != states.shape for part in parts):
            return scores + torch.nan
        joined = torch.cat([part for part in parts if part is not None], -1)
        blocks = torch.split(joined.flatten(0, -2), TOKENS_AT_ONCE)
        every = [torch.cat([each.scored(block) for block in blocks]) for each in self._lists]
        stacked = torch.stack(every, -1).view(*states.shape[:-1], -1)
        return stacked if columns is None else stacked[..., columns]

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The due directions, scaled; see `HiddenGuards.act`."""
        return self._schedules.act(layer, states, guard, age, strength)

    def with_room(self, room: Room) -> SuppressionLists:
        """See `RoomyGuards.with_room`; a list has room for twice its entries."""
        roomy = copy(self)
        roomy._schedules, roomy._earlier = self._schedules.with_room(room), {}
        empty = [self._lists[0].emptied()] * (room.guards - len(self._lists))
        roomy._lists = [each.with_room() for each in (*self._lists, *empty)]
        return roomy

    def tensors(self) -> list[Tensor]:
        """See `RoomyGuards.tensors`."""
        parts = [tensor for each in self._lists for tensor in each.tensors()]
        return [*parts, *self._schedules.tensors()]

    def require_room(self, other: SuppressionLists) -> None:
        """See `RoomyGuards.require_room`: there is none for a list that has grown out of it."""
        if other._layers != self._layers:
            raise NoRoom("suppression lists that sense at other layers have no place")
        for mine, theirs in zip(self._lists, other._lists, strict=True):
            mine.require_room(theirs)

    def take(self, other: SuppressionLists) -> None:
        """See `RoomyGuards.take`."""
        for mine, theirs in zip(self._lists, other._lists, strict=True):
            mine.take(theirs)
        self._schedules.take(other._schedules)
        self.names, self.placements = other.names, other.placements


@dataclass(frozen=True)
class _Scorer:
    """One list, its entries filled up to a multiple of BLOCKS: `gates [entries, joined width]`,
    `bias [entries]`, `projection [joined width, dimensions]`, `centres [dimensions, entries]` with
    `half [entries]`, minus half the square of their length. A place without an entry has -inf for
    both biases. `radius []` is the list's, and `count` the number of entries."""

    gates: Tensor
    bias: Tensor
    projection: Tensor
    centres: Tensor
    half: Tensor
    radius: Tensor
    count: int

    @classmethod
    def of(
        cls, each: SuppressionList, layers: Sequence[int], device: torch.device | str
    ) -> _Scorer:
        order = [each.sense_layers.index(layer) for layer in layers]
        scorer = cls(
            each.gates[:, order].flatten(1).to(device),
            each.bias.to(device),
            each.projection[order].flatten(0, 1).to(device),
            each.centres.T.contiguous().to(device),
            (-0.5 * each.centres.square().sum(1)).to(device),
            torch.tensor(each.radius, device=device),
            len(each.bias),
        )
        return scorer._filled(-(-scorer.count // BLOCKS) * BLOCKS)

    def scored(self, states: Tensor) -> Tensor:
        """The scores `[tokens]` of `states [tokens, joined width]`, with their entries."""
        # of every block, each BLOCKS-th entry, the nearest: -|z - c|² / 2, but for the |z|² of all
        projected = states @ self.projection
        nearness = torch.addmm(self.half, projected, self.centres)
        best = nearness.view(len(states), -1, BLOCKS).max(1)
        candidates = best.indices * BLOCKS + torch.arange(BLOCKS, device=states.device)
        exact = torch.einsum("td,tcd->tc", states, self.gates[candidates]) + self.bias[candidates]
        distance = projected.square().sum(-1, keepdim=True) - 2 * best.values
        loss = PENALTY * (distance / self.radius - 1).clamp(min=0)
        score, place = (exact - loss).max(-1)
        entry = candidates.gather(1, place[:, None])[:, 0]
        steps = (score.clamp(0.0, HIGHEST - _STEP) / _STEP).floor()
        scores: Tensor = (steps * MOST_ENTRIES + entry) * _UNIT
        return scores

    def emptied(self) -> _Scorer:
        """A list without entries, of the same shapes."""
        nobody = torch.full_like(self.bias, -torch.inf)
        zeros = (torch.zeros_like(t) for t in (self.gates, self.projection, self.centres))
        gates, projection, centres = zeros
        return _Scorer(gates, nobody, projection, centres, nobody, self.radius, 0)

    def with_room(self) -> _Scorer:
        """The same entries with as many free places, BLOCKS at least, in tensors of their own: they
        are changed in place."""
        roomy = self._filled(2 * max(len(self.bias), BLOCKS))
        return replace(roomy, projection=self.projection.clone(), radius=self.radius.clone())

    def _filled(self, places: int) -> _Scorer:
        missing = min(places, MOST_ENTRIES) - len(self.bias)
        return _Scorer(
            pad(self.gates, (0, 0, 0, missing)),
            pad(self.bias, (0, missing), value=-torch.inf),
            self.projection,
            pad(self.centres, (0, missing)),
            pad(self.half, (0, missing), value=-torch.inf),
            self.radius,
            self.count,
        )

    def require_room(self, other: _Scorer) -> None:
        """Raise NoRoom where the entries of `other` have no place here."""
        if other.count > len(self.bias):
            raise NoRoom(
                f"a suppression list of {other.count} entries where there is room for "
                f"{len(self.bias)}"
            )
        if len(other.centres) != len(self.centres):
            raise NoRoom("a suppression list of another projection has no place")

    def take(self, other: _Scorer) -> None:
        """Hold the entries of `other` in place of these."""
        count = min(len(self.bias), len(other.bias))
        for mine, theirs in ((self.bias, other.bias), (self.half, other.half)):
            mine.fill_(-torch.inf)
            mine[:count] = theirs[:count]
        self.gates[:count] = other.gates[:count]
        self.centres[:, :count] = other.centres[:, :count]
        self.projection.copy_(other.projection)
        self.radius.copy_(other.radius)

    def tensors(self) -> list[Tensor]:
        return [self.gates, self.bias, self.projection, self.centres, self.half, self.radius]


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SuppressionLists:
    """From artifacts, as `guard suppress` writes them. Raises ValueError naming a fault."""
    return SuppressionLists([loaded(guard) for guard in guards], device)


def loaded(guard: FittedGuard) -> SuppressionList:
    """The list of one artifact. Raises ValueError naming a fault."""
    return SuppressionList(
        name=guard.name,
        sense_layers=guard.layers("sense_layers"),
        gates=guard.array("gates", 3),
        bias=guard.array("bias", 1),
        projection=guard.array("projection", 3),
        centres=guard.array("centres", 2),
        radius=guard.number("radius"),
        act_layers=guard.layers("act_layers"),
        directions=scheduled_directions(guard),
        rest=int(guard.number("rest")),
    )
