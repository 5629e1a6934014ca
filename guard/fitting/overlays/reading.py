"""Reading what a checkpoint or a file of adapters changes in a model.

Whole weights are subtracted: `ΔW = W_θ - W₀`. Factors of adapters are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guard.errors import DataError
from guard.fitting.overlays import adapters, whole
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change, Difference
from guard.fitting.overlays.factor_names import are_factors
from guard.fitting.overlays.weights import Weights, weight_files


def read_difference(source: Path, base: Base, component: str | None = None) -> Difference:
    """The difference of `source`, a folder or a .safetensors file, from `base`.

    A folder is one of diffusers or transformers (a pipeline or a network of it) or an adapter of
    PEFT; a file has whole weights, of some layers or all, or factors as kohya-ss, diffusers or PEFT
    name them. `component` says which network names without a prefix are of, as the pipeline calls
    it; without it, the one that has most of them. The weights are read on the CPU.

    Raises DataError for a pickle, a layout that is not known, weights of another model, values that
    are not finite, two changes of one layer, and no change at all.
    """
    parts = list(_parts(source, base, None if component is None else base.named(component)))
    changes: dict[str, Change] = {}
    dropped: dict[str, list[str]] = {}
    for part in parts:
        for layer, change in part.changes.items():
            if layer in changes:
                raise DataError(f"{source}: has two overlays for one layer, {layer}")
            changes[layer] = change
        for kind, names in part.dropped.items():
            dropped.setdefault(kind, []).extend(names)
    if not changes:
        what = sum(map(len, dropped.values()))
        lost = f" in the layers that can be served, only in {what} other weights" if what else ""
        raise DataError(f"{source}: is no different from the base{lost}: nothing to import")
    layouts = dict.fromkeys(part.layout for part in parts)
    return Difference(" and ".join(layouts), changes, dropped)


def _parts(source: Path, base: Base, component: str | None) -> Iterator[Difference]:
    """The difference of each network that `source` has."""
    folders = [source / alias for alias in base.aliases if (source / alias).is_dir()]
    is_pipeline = (source / "model_index.json").is_file() or not any(source.glob("*.safetensors"))
    if source.is_dir() and folders and is_pipeline and not adapters.is_peft(source):
        for folder in folders:
            yield from _parts(folder, base, base.aliases[folder.name])
        return
    if component is None:
        component = base.aliases.get(source.name) if source.is_dir() else None
    if adapters.is_peft(source):
        yield adapters.read_peft(source, base, component)
        return
    weights = Weights(weight_files(source))
    if are_factors(weights.names):
        yield adapters.read_factors(weights, base, component)
    else:
        yield whole.read_whole(weights, base, component)
