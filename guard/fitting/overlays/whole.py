"""The difference of whole weights from those of the base."""

from __future__ import annotations

from statistics import median

from torch import Tensor, nn

from guard.errors import DataError
from guard.fitting.overlays.base import Base, is_served, layer_name
from guard.fitting.overlays.changes import Change, Difference
from guard.fitting.overlays.weights import Weights
from steering.fingerprint import bare_name

UNRELATED = 0.7
"""The median of `‖ΔW‖ / ‖W₀‖` from which on a checkpoint is no fine-tuned copy: weights that have
nothing to do with each other are at the square root of 2."""
_BUFFERS = frozenset({"position_ids", "num_batches_tracked"})
_ORIGINAL = ("model.diffusion_model.", "cond_stage_model.", "conditioner.", "first_stage_model.")


def read_whole(weights: Weights, base: Base, component: str | None) -> Difference:
    """The difference of a state dict, of some layers or all. Raises DataError."""
    names = [n for n in weights.names if n.rpartition(".")[2] not in _BUFFERS]
    _require_known_layout(names, weights.label)

    def known(component: str, rest: str) -> bool:
        return bare_name(rest) in base.parameters[component]

    split = base.split(names, known, component, weights.label)
    unknown = [name for name, at in split.items() if not known(*at)]
    if unknown:
        raise DataError(
            f"{weights.label}: has {len(unknown)} of {len(names)} weights that the base has not, "
            f"{unknown[0]!r:.120} the first: it is of another model, or in a layout that is not "
            "known"
        )
    changes: dict[str, Change] = {}
    dropped: dict[str, list[str]] = {}
    sizes: list[float] = []
    for name, (of, rest) in split.items():
        own = base.parameters[of][bare_name(rest)]
        parameter = base.networks[of].get_parameter(own)
        delta = _delta(weights, name, parameter)
        if not bool(delta.any()):
            continue
        path, _, kind = own.rpartition(".")
        layer = layer_name(of, path)
        module = base.module(layer)
        if kind != "weight" or not is_served(module):
            dropped.setdefault(_kind(module, kind), []).append(name)
            continue
        if layer in changes:
            raise DataError(f"{weights.label}: has two overlays for one layer, {layer}")
        changes[layer] = Change(delta)
        sizes.append(float(delta.norm() / parameter.detach().float().norm().clamp(min=1e-12)))
    if sizes and median(sizes) > UNRELATED:
        raise DataError(
            f"{weights.label}: differs from the base by {median(sizes):.0%} of its weights in the "
            "median layer: it is no fine-tuned copy of it: name the model that it was made from"
        )
    return Difference("weights", changes, dropped)


def _delta(weights: Weights, name: str, parameter: nn.Parameter) -> Tensor:
    """`W_θ - W₀`, float32. A copy that was trained in a narrow dtype began at the base's weights in
    that dtype: without the rounding, their difference would be noise of full rank."""
    if weights.shape(name) != tuple(parameter.shape):
        raise DataError(
            f"{weights.label}: {name!r:.120} is {list(weights.shape(name))}, where the base has "
            f"{list(parameter.shape)}: it is of another model"
        )
    tensor = weights.tensor(name)
    return tensor.float() - parameter.detach().cpu().to(tensor.dtype).float()


def _kind(module: nn.Module, name: str) -> str:
    """The kind of a weight that cannot be served."""
    if "norm" in type(module).__name__.lower():
        return "norms"
    if name == "bias":
        return "biases"
    return "embeddings" if isinstance(module, nn.Embedding) else "other weights"


def _require_known_layout(names: list[str], label: str) -> None:
    original = next((name for name in names if name.startswith(_ORIGINAL)), None)
    if original is not None:
        raise DataError(
            f"{label}: has {original!r:.120}: it is in the original layout of Stable Diffusion; "
            "load it with diffusers' from_single_file and save it with save_pretrained"
        )
    if not names:
        raise DataError(f"{label}: has no weights")
