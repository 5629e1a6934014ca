"""Every loaded guard of the hidden seam, of all methods, as one set of columns.

A method stacks its guards (`HiddenGuards`); a bank puts the stacks of one model side by side. Each
guard senses at decoder layers of its own and decides at the last of them, so guards whose layers
interleave live in one bank: a guard that senses behind a layer where another guard acts on the same
row reads the states that the other guard has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from steering.hidden.overlays import LinearOverlay

Tokens = Literal["all", "text", "image", "last"]
"""Which tokens of a request a guard scores: all, those of the text, the placeholder tokens of
images, or the last one of the prompt. Generated tokens are text, and each is the last one."""

TOKENS: tuple[Tokens, ...] = get_args(Tokens)


@dataclass(frozen=True)
class Placement:
    """Where and when one guard senses and acts.

    The score of a token is the sum of the scores of `HiddenGuards.sense` at `sense_layers`; the
    statistic of a row is the mean of its `pool` largest scores. A guard that fires acts after
    `act_layers` at the token where it fires and at the next ones, `steps` tokens in all (None: to
    the end); without such layers it acts inside of them (`steering.hidden.overlays`). Where the
    row rechecks, a topical token starts that again once `rest` tokens have passed (None: `steps`).
    `tokens` are those that count; the others score 0, as do tokens that a row does not have.
    Where a row decides on its last turn, and the turns before it are over the threshold, the last
    one is compared with the share `follow_up` of it: it may go on with them, and name nothing.

    Raises ValueError for an impossible placement.
    """

    sense_layers: tuple[int, ...]
    act_layers: tuple[int, ...]
    steps: int | None
    pool: int = 1
    rest: int | None = None
    tokens: Tokens = "all"
    follow_up: float = 1.0

    def __post_init__(self) -> None:
        for layers in (self.sense_layers, self.act_layers):
            if len(set(layers)) != len(layers):
                raise ValueError("must list each of its layers once")
        if not self.sense_layers:
            raise ValueError("needs layers to sense")
        if self.steps is not None and self.steps < 1:
            raise ValueError("must act for at least one step")
        if self.decides > min(self.act_layers, default=self.decides):
            raise ValueError("would act at a layer before its last sensing layer")
        if self.rest is not None and self.rest < 1:
            raise ValueError("rest must be at least 1")
        if self.pool < 1:
            raise ValueError("pool must be at least 1")
        if not 0 < self.follow_up <= 1:
            raise ValueError(f"follow_up must be over 0 and at most 1, not {self.follow_up}")
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, not {self.tokens!r}")

    @property
    def decides(self) -> int:
        """The layer after which the guard decides."""
        return max(self.sense_layers)


class HiddenGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`.

    States are float32, `[..., width]`, the output of a decoder layer, with any leading shape.
    """

    names: Sequence[str]
    width: int
    placements: Sequence[Placement]

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """Scores `[..., guards]` that `states` add at `layer`; zeros where a guard does not sense.

        `columns` are the guards to score, None for all. A larger score means more of the concept.
        """

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The change `[..., width]` that guards make to `states [..., width]` after `layer`.

        `guard`, `age` and `strength` are `[...]`: a column, the tokens since it fired (0 at the
        first), and the factor on the change, which is zero for places where nothing is due. The
        change may depend on the states (`-r (r·h)`, `target - h`); it is zero where the guard does
        not act at `layer`. Changes of several guards at one token are joined (`bounded`).
        """


class OverlaidGuards(HiddenGuards, Protocol):
    """Stacked guards that act on linear layers inside the decoder layers, on rows of which they
    have decided by the prompt."""

    overlays: Mapping[str, LinearOverlay]
    """Guard → its overlay."""


class RoomyGuards(HiddenGuards, Protocol):
    """Stacked guards that others can replace in place."""

    def with_room(self, room: Room) -> RoomyGuards:
        """The same guards, as the first columns of a stack with this room. Raises NoRoom."""

    def tensors(self) -> list[Tensor]:
        """All tensors of the stack."""

    def require_room(self, other: RoomyGuards) -> None:
        """Raise NoRoom where the guards of `other`, a stack with the same room, have no place
        here."""

    def take(self, other: RoomyGuards) -> None:
        """Copy the guards of `other`, for which there is room, over these: every tensor stays where
        it is."""


@dataclass(frozen=True)
class Room:
    """The room of a bank that is changed in place: how many `guards` of each method, the longest
    schedule in `steps`, the largest `pool`, and how many guards `most` on one row."""

    guards: int
    steps: int
    pool: int
    most: int


class NoRoom(ValueError):
    """Guards do not fit into the room that was set aside for them."""


class HiddenBank:
    """The stacks of one model side by side. Immutable without `room`; swap the whole bank to change
    it.

    Raises ValueError for two guards of one name, or guards of different widths, and NoRoom.
    """

    def __init__(
        self,
        stacks: Sequence[HiddenGuards] = (),
        device: torch.device | str = "cpu",
        room: Room | None = None,
    ) -> None:
        names = [name for stack in stacks for name in stack.names]
        if len(set(names)) != len(names):
            raise ValueError("two guards of a bank have the same name")
        if len({stack.width for stack in stacks}) > 1:
            raise ValueError("the guards of a bank must be of one width, that of the model")
        self.device = torch.device(device)
        self.room = room
        self.stacks = tuple(stacks if room is None else [_roomy(stack, room) for stack in stacks])
        sizes = [len(stack.names) if room is None else room.guards for stack in stacks]
        self._first = [sum(sizes[:i]) for i in range(len(sizes))]
        self.columns = sum(sizes)
        """The number of columns; without room, that of guards."""
        self.index = {
            name: first + i
            for first, stack in zip(self._first, stacks, strict=True)
            for i, name in enumerate(stack.names)
        }
        """Name → column."""
        placements = [placement for stack in stacks for placement in stack.placements]
        self.placements = dict(zip(names, placements, strict=True))
        """By name."""
        self.pool = max((placement.pool for placement in placements), default=1)
        if room is not None:
            if self.pool > room.pool:
                raise NoRoom(f"the largest pool is {self.pool}, and there is room for {room.pool}")
            self.pool = room.pool
        self.sense_layers = frozenset(at for p in placements for at in p.sense_layers)
        self.act_layers = frozenset(at for p in placements for at in p.act_layers)
        self.decisions = sorted({placement.decides for placement in placements})
        """The layers after which guards decide."""
        self.selective = room is not None or any(p.tokens != "all" for p in placements)
        """Whether a guard scores some tokens only, or, with room, another one may."""
        self.acting = {
            layer: self._which({n for n, p in self.placements.items() if layer in p.act_layers})
            for layer in sorted(self.act_layers)
        }
        """Layer → which guards act there, `[columns]`; None for all of them."""
        self.overlays = {
            name: overlay
            for stack in stacks
            for name, overlay in getattr(stack, "overlays", {}).items()
        }
        """Guard → its overlay, of those that have one (`OverlaidGuards`)."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def layers(self) -> list[int]:
        """Decoder layers that need a hook."""
        return sorted(self.sense_layers | self.act_layers)

    @property
    def last_decision(self) -> int:
        """The layer after which all guards have decided, -1 without guards."""
        return max(self.decisions, default=-1)

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """Scores `[..., columns]` of `states [..., width]`, float32; see `HiddenGuards.sense`."""
        if len(self.stacks) == 1:
            return self.stacks[0].sense(layer, states, columns)
        if columns is None:
            return torch.cat([stack.sense(layer, states) for stack in self.stacks], -1)
        total = states.new_zeros(*states.shape[:-1], len(columns))
        for belongs, column, stack in self._by_stack(columns):
            scores = stack.sense(layer, states, column)
            total = torch.where(belongs, scores, total)
        return total

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The change `[..., width]` of `states`; `guard [...]` are columns of the bank.

        See `HiddenGuards.act`.
        """
        if len(self.stacks) == 1:
            return self.stacks[0].act(layer, states, guard, age, strength)
        total = torch.zeros(*guard.shape, states.shape[-1], device=states.device)
        for belongs, column, stack in self._by_stack(guard):
            share = strength.where(belongs, 0.0)
            change = stack.act(layer, states, column, age.where(belongs, 0), share)
            total = torch.where(belongs[..., None], change, total)
        return total

    def take(self, other: HiddenBank) -> None:
        """Become `other`, of no room, in place: a captured graph goes on with its guards. Raises
        NoRoom, and changes nothing then."""
        assert self.room is not None
        fresh = HiddenBank(other.stacks, self.device, self.room)
        if [type(stack) for stack in fresh.stacks] != [type(stack) for stack in self.stacks]:
            raise NoRoom("guards of other methods than at the start have no place")
        pairs = (
            (fresh.sense_layers, self.sense_layers, "sense"),
            (fresh.act_layers, self.act_layers, "act"),
            (frozenset(fresh.decisions), frozenset(self.decisions), "decide"),
        )
        for new, old, verb in pairs:
            if more := sorted(new - old):
                layers = ", ".join(map(str, more))
                raise NoRoom(f"no guard was there to {verb} after layers {layers} at the start")
        stacks = list(zip(self.stacks, fresh.stacks, strict=True))
        for mine, theirs in stacks:
            mine.require_room(theirs)  # type: ignore[attr-defined]
        for mine, theirs in stacks:
            mine.take(theirs)  # type: ignore[attr-defined]
        for layer, mask in self.acting.items():
            assert mask is not None
            theirs_mask = fresh.acting.get(layer)
            mask.copy_(torch.zeros_like(mask) if theirs_mask is None else theirs_mask)
        self.index, self.placements = fresh.index, fresh.placements

    def tensors(self) -> list[Tensor]:
        """All that it holds on the device, of a bank with room."""
        of_stacks = (stack.tensors() for stack in self.stacks)  # type: ignore[attr-defined]
        masks = (mask for mask in self.acting.values() if mask is not None)
        return [*(tensor for tensors in of_stacks for tensor in tensors), *masks]

    def _by_stack(self, guard: Tensor) -> Iterator[tuple[Tensor, Tensor, HiddenGuards]]:
        """For each stack: which of the columns `guard` are its own, their columns in it, and it."""
        ends = [*self._first[1:], self.columns]
        for first, end, stack in zip(self._first, ends, self.stacks, strict=True):
            belongs = (guard >= first) & (guard < end)
            yield belongs, (guard - first).where(belongs, 0), stack

    def _which(self, chosen: Set[str]) -> Tensor | None:
        if self.room is None and len(chosen) == len(self.index):
            return None
        mask = torch.zeros(self.columns, dtype=torch.bool)
        mask[[self.index[name] for name in chosen]] = True
        return mask.to(self.device)


def bounded(total: Tensor, longest: Tensor) -> Tensor:
    """The change that several guards make at one token together: the sum `total [..., width]` of
    theirs, made no longer than the `longest [...]` of them.

    What guards erase differs, and the way to a refusal hardly does: with the whole sum, two guards
    that fire on one request would act at twice the strength, at which answers loop.
    """
    length = total.norm(dim=-1)
    # one change alone stays as it is, bit for bit
    scale = torch.where(length > longest * (1 + 1e-5), longest / length, 1.0)
    return total * scale[..., None]


def _roomy(stack: HiddenGuards, room: Room) -> RoomyGuards:
    if not hasattr(stack, "with_room"):
        raise NoRoom(f"{type(stack).__name__} cannot be changed in place")
    roomy: RoomyGuards = stack.with_room(room)
    return roomy
