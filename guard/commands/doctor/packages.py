"""Which extras of the package are complete in this environment, by its own metadata."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guard.commands.doctor.finding import Finding

DISTRIBUTION = "inference-guard"
PLUGIN_GROUP = "vllm.general_plugins"
_DEVELOPMENT = frozenset({"dev", "benchmarks", "demo"})
"""Extras that no deployment needs."""


def extras() -> tuple[str, ...]:
    """The names of the extras that a deployment may need."""
    names: list[str] = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return tuple(sorted({*names} - _DEVELOPMENT))


def extra_findings(needed: str | None) -> Iterator[Finding]:
    """A finding for each extra; one that is absent is "missing" where it is `needed`, else a
    note."""
    for name in extras():
        absent = sorted(_absent(name))
        if not absent:
            yield Finding(f"extra {name}", "ok", "complete")
            continue
        yield Finding(
            f"extra {name}",
            "missing" if name == needed else "note",
            f"not there: {', '.join(absent)}",
            f'pip install "{DISTRIBUTION}[{name}]"',
        )


def plugin_finding() -> Finding | None:
    """Whether vLLM would load the plugin; None where there is no vLLM."""
    try:
        found = version("vllm")
    except PackageNotFoundError:
        return None
    required = next((r for r in _requirements("vllm") if r.name == "vllm"), None)
    points: tuple[EntryPoint, ...] = tuple(entry_points(group=PLUGIN_GROUP, name=DISTRIBUTION))
    if not points:
        remedy = f"install {DISTRIBUTION} in vLLM's environment"
        return Finding("vLLM plugin", "missing", f"vLLM {found}, plugin not registered", remedy)
    if required is not None and not required.specifier.contains(found, prereleases=True):
        remedy = f'pip install "vllm{required.specifier}"'
        return Finding("vLLM plugin", "missing", f"vLLM {found} is not one it is for", remedy)
    return Finding("vLLM plugin", "ok", f"vLLM {found}, plugin registered")


def _absent(extra: str) -> Iterator[str]:
    """The requirements of an extra that are not met, and those of extras that it names."""
    for requirement in _requirements(extra):
        if canonicalize_name(requirement.name) == DISTRIBUTION:
            for nested in requirement.extras:
                yield from _absent(nested)
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield str(requirement.name)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} (it is {found})"


def _requirements(extra: str) -> Iterator[Requirement]:
    """Those of an extra alone: without the ones that are there wherever the package is."""
    for line in metadata(DISTRIBUTION).get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        if marker.evaluate({"extra": extra}):
            yield requirement
