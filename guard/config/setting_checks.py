"""Checks of a guard's settings: its artifact's, and those that the configuration replaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guard.artifact import ArtifactMeta
from guard.config.kinds import kind_of
from guard.config.toml_lines import KeyPath
from guard.errors import ArtifactError
from steering.methods import method_named

DECIDES_ON_PROMPT = "overlays linear layers and decides on the prompt alone"
"""Why a guard has no threshold of generated tokens."""


def recheck_of(
    chosen: bool | float | None, fitted: float | None, threshold: float | None
) -> float | None:
    """The threshold of generated tokens in force, None for none: that of the configuration, or that
    of the fit, which a `threshold` of the configuration raises where it is higher.

    Raises ArtifactError where the configuration asks for one and there is none.
    """
    if chosen is False:
        return None
    if chosen is not None and chosen is not True:
        return chosen
    if fitted is None:
        if chosen:
            raise ArtifactError(
                "was fitted without a threshold for generated tokens: leave out recheck, give the "
                "threshold itself, or fit it again with --recheck"
            )
        return None
    return fitted if threshold is None else max(fitted, threshold)


def setting_problems(
    index: int, guard: Mapping[str, Any], meta: ArtifactMeta
) -> Iterator[tuple[KeyPath, str]]:
    """The faults of `guards[index]`, whose artifact has this metadata, by its method's entry.

    A method that is not installed here is none: a server breaks the policies that name the guard.
    Values of the wrong type are ignored.
    """
    try:
        method = method_named(meta.method)
    except ValueError:
        return
    name = str(guard.get("name"))
    for key in ("threshold", "strength", "recheck"):
        value = guard.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                method.require_in_range({key: value}, name)
            except ValueError as error:
                yield ("guards", index, key), str(error)
    if method.seam == "linear" and guard.get("recheck") not in (None, False):
        yield ("guards", index, "recheck"), f"{DECIDES_ON_PROMPT}: leave it out"
    try:
        method.require_in_range(meta.settings, name)
    except ValueError as error:
        yield ("guards", index, "artifact"), f"{error}: fit the guard again"
    if kind_of(meta) != method.kind:
        fault = f"its method, {method.name!r}, does not act at its seams ({', '.join(meta.seams)})"
        yield ("guards", index, "artifact"), f"{fault}: fit the guard again"
