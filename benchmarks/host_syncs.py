"""Host syncs: how often the CPU waits for the GPU, counted in a profile.

`count_syncs` runs a function under torch's profiler. A sync is a call of `cudaStreamSynchronize`,
`cudaDeviceSynchronize` or `cudaEventSynchronize`: copies to and from memory that is not pinned end
in one, and so do `.item()`, `.tolist()` and `nonzero`. On a CPU there are none; what is read as a
scalar is counted there too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[1]
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_COPIES = "Memcpy DtoH"
_SCALARS = "aten::_local_scalar_dense"
_WARNING = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Syncs:
    """Counts: `waits` of the CPU for the GPU, `copies` from the GPU, and values read as `scalars`
    (`aten::item`), each of which is a wait and a copy too."""

    waits: float = 0
    copies: float = 0
    scalars: float = 0

    def per(self, steps: int) -> Syncs:
        """The counts of one of `steps` equal steps. Raises ValueError for no steps."""
        if steps < 1:
            raise ValueError("a count per step needs a step")
        return Syncs(**{name: count / steps for name, count in asdict(self).items()})

    def __sub__(self, other: Syncs) -> Syncs:
        mine, theirs = asdict(self), asdict(other)
        return Syncs(**{name: mine[name] - theirs[name] for name in mine})


def syncs_in(events: Iterable[tuple[str, int]]) -> Syncs:
    """From the names of a profile's events and how often each occurs."""
    waits = copies = scalars = 0
    for name, count in events:
        if name in _WAITS:
            waits += count
        elif name.startswith(_COPIES):
            copies += count
        elif name == _SCALARS:
            scalars += count
    return Syncs(waits, copies, scalars)


def count_syncs(run: Callable[[], object]) -> Syncs:
    """The syncs of one call of `run`, all threads of the process included."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        # what was queued before is not of this call
        torch.cuda.synchronize()
    with profile(activities=activities, acc_events=True) as profiler:
        run()
    return syncs_in((event.key, event.count) for event in profiler.key_averages())


def own_places(run: Callable[[], object]) -> Mapping[str, int]:
    """Where in this repository `run` waits for the GPU: `file:line` → how often, most first.

    Empty without a GPU. Waits in libraries are left out.
    """
    if not torch.cuda.is_available():
        return {}
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return places_in((str(each.message), each.filename, each.lineno) for each in caught)


def places_in(caught: Iterable[tuple[str, str, int]]) -> Mapping[str, int]:
    """`own_places` of warnings: message, file and line of each."""
    places: Counter[str] = Counter()
    for message, file, line in caught:
        path = Path(file)
        if _WARNING in message and path.is_relative_to(ROOT) and ".venv" not in file:
            places[f"{path.relative_to(ROOT)}:{line}"] += 1
    return dict(places.most_common())
