"""Fitting a suppression list: a gate for each name, and one threshold for all.

The gate of a name answers to the states in which the name ends, in several wordings. What it must
not answer to are the retain bank, names of strangers, and, with the weight of the name itself,
names that share a part with it: only what the whole name adds to its parts is left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classifiers.calibration import prompts_needed, threshold_for
from guard.data.bank.names import TRAIN, VALIDATION, sharing
from guard.errors import DataError
from guard.fitting.erasure.profile import Profile
from guard.fitting.erasure.profiling import ANSWERED, read_prompts
from guard.fitting.steering.directions import REST, SCHEDULE
from guard.fitting.steering.gate_search import raised, share_over
from guard.fitting.steering.gates import FORGET_WEIGHT, TokenStates
from guard.fitting.suppression.reading import Asked, name_states
from guard.fitting.suppression.strangers import HELD_OUT, Strangers
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.suppression_list import SuppressionList, SuppressionLists

SHARING = 6
"""Names that share a part with a name, for its gate."""
CHECKED = 300
"""Prompts about names of the list, and about names that share a part with one, for thresholds."""
ROOM = 0.75
"""The share of the room between innocent prompts and names that the threshold takes."""
REACHED = 0.98
"""The share of prompts about names of the list that leaves room above the threshold."""
RADIUS = 2.0
"""Of entries, in medians of the squared distance of prompts about them."""
AT_ONCE = 250
"""Names whose gates are solved together."""


@dataclass(frozen=True)
class ListRates:
    """False-positive rates of a whole request under the whole list, on prompts of the retain bank
    (`far`; half of it is for the prompt, half for the answer), and on prompts about other people,
    some of whom share a name (`strangers`)."""

    far: float = 0.01
    strangers: float = 0.03


@dataclass(frozen=True)
class Gates:
    """Gates of some names: `gates [names, layers, width]` with `bias [names]`, and the projected
    mean states of the names, `centres [names, dimensions]`."""

    gates: Tensor
    bias: Tensor
    centres: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Gates]) -> Gates:
        """All of them, in order."""
        return cls(
            torch.cat([part.gates for part in parts]),
            torch.cat([part.bias for part in parts]),
            torch.cat([part.centres for part in parts]),
        )


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a list on prompts and on generated tokens, the radius of its entries, and
    the figures behind them."""

    level: float
    recheck: float
    radius: float
    figures: dict[str, float | int | str]


def fit_gates(
    chat: ChatModel,
    profile: Profile,
    strangers: Strangers,
    names: Sequence[str],
    progress: Stages,
) -> Gates:
    """The gates of names, one for each."""
    parts = [names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)]
    own = [Asked(wording, name) for name in names for wording in TRAIN]
    others = [
        Asked(TRAIN[i % len(TRAIN)], other)
        for name in names
        for i, other in enumerate(sharing(name, "train", SHARING))
    ]
    layers = profile.about.sense_layers
    shown = name_states(chat, own, layers, "reading names", progress)
    shared = name_states(chat, others, layers, "reading names that share a part", progress)
    factor = torch.linalg.cholesky(strangers.system)
    found, done = [], 0
    for part in parts:
        stop = done + len(part)
        mine = shown[done * len(TRAIN) : stop * len(TRAIN)]
        theirs = shared[done * SHARING : stop * SHARING]
        found.append(_solved(profile, strangers, factor, mine, theirs, len(part)))
        done = stop
    return Gates.joined(found)


def _solved(
    profile: Profile, strangers: Strangers, factor: Tensor, own: Tensor, others: Tensor, count: int
) -> Gates:
    """The gates of `count` names from the states of their prompts: `w = argmin Σ a (w·x - 1)² +
    Σ a (w·y)² + wᵀ S w` over own states x and those y of names that share a part, by Woodbury's
    identity on the shared `factor` of S."""
    statistics, sample = profile.statistics, profile.sample
    scale = statistics.scale[:, None]
    mine, theirs = (
        (states * scale).flatten(1).view(count, -1, len(factor)) for states in (own, others)
    )
    every = torch.cat([mine, theirs], 1).double()
    target = torch.cat([mine.new_ones(mine.shape[:2]), mine.new_zeros(theirs.shape[:2])], 1)
    solved = torch.cholesky_solve(every.flatten(0, 1).T, factor).T.view_as(every)
    kernel = every @ solved.transpose(1, 2)
    share = FORGET_WEIGHT * statistics.weight / mine.shape[1]
    kernel = kernel + torch.eye(kernel.shape[1], dtype=kernel.dtype) / share
    gates = (solved * torch.linalg.solve(kernel, target.double()[..., None])).sum(1).float()
    # in units: 0 for an innocent prompt, 1 for one about the name
    innocent = (sample.states.float() * scale).flatten(1)
    mean = _largest(innocent @ gates.T, sample).mean(0)
    median = (mine @ gates[..., None])[..., 0].median(1).values
    unit = (median - mean).clamp(min=1e-6)
    shape = (count, len(statistics.scale), -1)
    return Gates(
        gates=(gates / unit[:, None]).view(shape) * scale,
        bias=-mean / unit,
        centres=mine.mean(1) @ strangers.projection,
    )


def calibrated(
    chat: ChatModel,
    profile: Profile,
    strangers: Strangers,
    gates: Gates,
    names: Sequence[str],
    rates: ListRates,
    progress: Stages,
) -> Thresholds:
    """The thresholds of a new list, for the whole of it; `names` are those of its gates."""
    layers = profile.about.sense_layers
    some = names[:: max(len(names) // CHECKED, 1)][:CHECKED]
    turns = -(-CHECKED // len(some))
    alike = [other for name in some for other in sharing(name, "validation", turns)]
    # half of them share both parts, each with another name of the list: these are the hardest
    alike[::2] = _crossed(names, len(alike[::2])) or alike[::2]
    asked = [
        Asked(VALIDATION[i % len(VALIDATION)], other).text
        for i, other in enumerate(alike[:CHECKED])
    ]
    own = [
        Asked(VALIDATION[(i + k) % len(VALIDATION)], name).text
        for i, name in enumerate(some)
        for k in range(min(turns, len(VALIDATION)))
    ]
    sharers = read_prompts(chat, asked, layers, "validation, shared names", progress)
    named = read_prompts(chat, own, layers, "validation, names", progress)
    places = [names.index(name) for name in some for _ in range(min(turns, len(VALIDATION)))]
    radius = RADIUS * _distances(profile, strangers, named, gates.centres[places])
    stack = SuppressionLists([list_of("list", profile, strangers, gates, radius)])

    def scores(states: TokenStates) -> list[float]:
        return list_scores(stack, states).tolist()

    far, known = scores(profile.held_out), scores(strangers.held_out)
    shared, mine, answered = scores(sharers), scores(named), scores(profile.answered)
    kept = _level(far, [*known, *shared], rates)
    # people of the bank are not all people: where names leave room, the threshold takes most of it
    reached = sorted(mine)[int(len(mine) * (1 - REACHED))]
    level = max(kept, kept + ROOM * (reached - kept))
    recheck = max(level, raised(threshold_for(answered, rates.far / 2), answered))
    return Thresholds(
        level,
        recheck,
        radius,
        {
            "split": "validation",
            "false_positive_rate": rates.far,
            "strangers_false_positive_rate": rates.strangers,
            "names": len(names),
            "named_fired": share_over(mine, level),
            "sharing_fired": share_over(shared, level),
            "strangers_fired": share_over(known, level),
            "far_fired": share_over(far, level),
        },
    )


def recalibrated(
    profile: Profile, strangers: Strangers, gates: Gates, before: Thresholds
) -> Thresholds:
    """The thresholds of a list that has grown, never lower than `before`: more gates fire on more
    strangers. Of names that were there before there are gates alone, so that nothing is asked about
    any name, and the radius stays."""
    figures = before.figures
    rates = ListRates(
        float(figures["false_positive_rate"]), float(figures["strangers_false_positive_rate"])
    )
    stack = SuppressionLists([list_of("list", profile, strangers, gates, before.radius)])
    far, known, answered = (
        list_scores(stack, states).tolist()
        for states in (profile.held_out, strangers.held_out, profile.answered)
    )
    level = max(before.level, _level(far, known, rates))
    recheck = raised(threshold_for(answered, rates.far / 2), answered)
    return Thresholds(
        level,
        max(level, before.recheck, recheck),
        before.radius,
        figures
        | {
            "names": len(gates.bias),
            "strangers_fired": share_over(known, level),
            "far_fired": share_over(far, level),
        },
    )


def require_rates(rates: ListRates) -> None:
    """Raise DataError for rates that there are too few innocent prompts for."""
    for option, rate, have in (
        ("--fpr", rates.far / 2, ANSWERED),
        ("--strangers-fpr", rates.strangers, HELD_OUT),
    ):
        if (needed := prompts_needed(rate)) > have:
            raise DataError(
                f"{option}: the rate needs {needed} innocent prompts, there are {have}: ask for a "
                "higher one"
            )


def _level(far: Sequence[float], other: Sequence[float], rates: ListRates) -> float:
    """The lowest threshold on prompts that keeps the rates."""
    level = max(threshold_for(far, rates.far / 2), threshold_for(other, rates.strangers))
    return raised(level, [*far, *other])


def _crossed(names: Sequence[str], count: int) -> list[str]:
    """So many names of one of `names` with the last part of another one, none of them on the list;
    none where there are too few."""
    rng, listed = random.Random(len(names)), {name.casefold() for name in names}
    parts = [name.split() for name in names if " " in name]
    found = []
    for _ in range(10 * count if len(parts) > 1 else 0):
        first, last = rng.sample(parts, 2)
        other = " ".join([*first[:-1], last[-1]])
        if other.casefold() not in listed:
            found.append(other)
    return found[:count] if len(found) >= count else []


def _distances(
    profile: Profile, strangers: Strangers, states: TokenStates, centres: Tensor
) -> float:
    """The median over sequences of the squared distance of the nearest token to the sequence's own
    of `centres [sequences, dimensions]`."""
    scale = profile.statistics.scale[:, None]
    projected = (states.states.float() * scale).flatten(1) @ strangers.projection
    distance = (projected - centres[states.sequence]).square().sum(1)
    return float(-_largest(-distance[:, None], states).median())


def list_of(
    name: str, profile: Profile, strangers: Strangers, gates: Gates, radius: float
) -> SuppressionList:
    """The list of these gates, with the profile's directions."""
    scale = profile.statistics.scale
    shape = (len(scale), -1, strangers.projection.shape[-1])
    return SuppressionList(
        name=name,
        sense_layers=profile.about.sense_layers,
        gates=gates.gates,
        bias=gates.bias,
        projection=strangers.projection.view(shape) * scale[:, None, None],
        centres=gates.centres,
        radius=radius,
        act_layers=profile.about.act_layers,
        directions=torch.tensor(SCHEDULE)[:, None, None] * profile.directions[None],
        rest=REST,
    )


def list_scores(stack: SuppressionLists, states: TokenStates) -> Tensor:
    """The scores `[sequences]` of states after the stack's layers, of a stack of one list."""
    *earlier, last = stack.placements[0].sense_layers
    for place, layer in enumerate(earlier):
        stack.sense(layer, states.states[:, place].float())
    return _largest(stack.sense(last, states.states[:, -1].float()), states)[:, 0]


def _largest(tokens: Tensor, states: TokenStates) -> Tensor:
    """The largest of the scores `[tokens, columns]` of each sequence, `[sequences, columns]`."""
    found = tokens.new_full((states.count, tokens.shape[1]), -torch.inf)
    at = states.sequence[:, None].expand_as(tokens)
    return found.scatter_reduce_(0, at, tokens, "amax")
