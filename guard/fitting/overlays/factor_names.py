"""What files of adapters call the factors of a layer: kohya-ss, diffusers in three generations,
PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guard.errors import DataError
from guard.fitting.overlays.base import Base, layer_name
from steering.fingerprint import bare_name

_PATTERNS = tuple(
    map(
        re.compile,
        (
            # diffusers, as attention processors; then in text encoders; then in denoisers
            r"(?P<stem>.+?)(?:\.processor)?\.(?P<part>to_[qkv]|to_out)_lora\.(?P<factor>up|down)\.weight",
            r"(?P<stem>.+)\.lora_linear_layer\.(?P<factor>up|down)\.weight",
            r"(?P<stem>.+)\.lora\.(?P<factor>up|down)\.weight",
            # kohya-ss, and SPM after it
            r"(?P<stem>.+)\.lora_(?P<factor>up|down)\.weight",
            # PEFT, and diffusers since; with the adapter's name where a state dict was saved whole
            r"(?P<stem>.+)\.lora_(?P<factor>A|B)(?:\.[^.]+)?\.weight",
            r"(?P<stem>.+)\.(?P<factor>alpha)",
        ),
    )
)
_FACTOR = {"A": "down", "B": "up"}
_KOHYA = re.compile(r"lora_(?P<network>unet|transformer|te\d?)_(?P<path>.+)")
_COMPONENTS = {
    **{"unet": "", "transformer": "", "te": "text_encoder", "te1": "text_encoder"},
    **{"te2": "text_encoder_2", "te3": "text_encoder_3"},
}
_OTHER_KINDS = {
    **{"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"},
    **{"oft_": "OFT", "boft_": "BOFT", "lora_mid": "LoCon (Tucker)", "vera_": "VeRA"},
}
_REMEDY = "merge it into the model, save the model, and import that"


@dataclass(frozen=True)
class FactorNames:
    """The names of `A` and `B` of a layer, `ΔW = scale · B A`, and of its alpha."""

    down: str
    up: str
    alpha: str | None


def are_factors(names: Iterable[str]) -> bool:
    """Whether these are names of adapters of any kind, and not of whole weights."""
    return any(
        "lora_" in name or "_lora." in name or ".lora." in name or _kind(name) for name in names
    )


def is_kohya(names: Iterable[str]) -> bool:
    return any(_KOHYA.match(name) for name in names)


def factor_names(names: Iterable[str], label: str) -> dict[str, FactorNames]:
    """The factors by what their names have in common. Raises DataError for any other name, a factor
    that is missing, and one that is there twice."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        stem, factor = _parsed(name, label)
        known = found.setdefault(stem, {})
        if factor in known:
            raise DataError(
                f"{label}: has two overlays for one layer: {known[factor]!r:.120} and {name!r:.120}"
            )
        known[factor] = name
    for stem, known in found.items():
        if missing := {"down", "up"} - known.keys():
            raise DataError(f"{label}: lacks the {missing.pop()} factor of {stem!r:.120}")
    return {s: FactorNames(of["down"], of["up"], of.get("alpha")) for s, of in found.items()}


def layers_of(
    stems: Iterable[str], base: Base, component: str | None, label: str
) -> dict[str, str]:
    """The layer of each stem. Raises DataError for one that the base has not."""
    joined = {stem: match for stem in stems if (match := _KOHYA.fullmatch(stem))}
    layers = {stem: _joined_layer(match, base, label) for stem, match in joined.items()}

    def known(component: str, rest: str) -> bool:
        return f"{bare_name(rest)}.weight" in base.parameters[component]

    plain = [stem for stem in stems if stem not in joined]
    for stem, (of, rest) in base.split(plain, known, component, label).items():
        if not known(of, rest):
            raise _unknown(stem, label)
        weight = base.parameters[of][f"{bare_name(rest)}.weight"]
        layers[stem] = layer_name(of, weight.rpartition(".")[0])
    return layers


def _parsed(name: str, label: str) -> tuple[str, str]:
    """The stem of a name, and which factor it is."""
    if (kind := _kind(name)) is not None:
        raise DataError(
            f"{label}: has {name!r:.120}, of a {kind} adapter, which is no product of two factors: "
            f"{_REMEDY}"
        )
    match = next((m for pattern in _PATTERNS if (m := pattern.fullmatch(name))), None)
    if match is None:
        raise DataError(f"{label}: has {name!r:.120}, which is no factor of a layer: {_REMEDY}")
    groups: Mapping[str, str | None] = match.groupdict()
    stem, part = match["stem"], groups.get("part")
    if part is not None:
        stem = f"{stem}.to_out.0" if part == "to_out" else f"{stem}.{part}"
    return stem, _FACTOR.get(match["factor"], match["factor"])


def _joined_layer(match: re.Match[str], base: Base, label: str) -> str:
    """The layer that kohya-ss calls so: its path with `_` for `.`"""
    of, path = _COMPONENTS.get(match["network"], match["network"]), match["path"]
    if of not in base.networks:
        raise DataError(f"{label}: has {match[0]!r:.120}, for {of}, which the base has not")
    # releases of transformers do not agree on the first part
    for name in (path, path.removeprefix("text_model_")):
        if name in base.joined[of]:
            return layer_name(of, base.joined[of][name])
    raise _unknown(match[0], label)


def _unknown(stem: str, label: str) -> DataError:
    return DataError(
        f"{label}: has {stem!r:.120}, which is no layer of the base: it is of another model, or in "
        "a layout that is not known: load it with diffusers, and save what save_lora_adapter writes"
    )


def _kind(name: str) -> str | None:
    return next((kind for part, kind in _OTHER_KINDS.items() if part in name), None)
