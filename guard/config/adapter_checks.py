"""Checks of `[[models.adapters]]`: their files' settings, and what they and other sections name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guard.config.kinds import Kind
from guard.config.toml_lines import KeyPath
from steering.engines.transformers.adapters.settings import LoraSettings, UnfitAdapter

OF_BASE = "of-base"


def adapters_of(index: int, model: Mapping[str, Any]) -> list[tuple[KeyPath, Mapping[str, Any]]]:
    """The adapters of `models[index]`, each with its path."""
    adapters = model.get("adapters")
    return [
        (("models", index, "adapters", number), adapter)
        for number, adapter in enumerate(adapters if isinstance(adapters, list) else [])
        if isinstance(adapter, dict)
    ]


def adapter_problems(
    models: list[tuple[int, Mapping[str, Any]]],
    default_policy: object,
    policies: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, Kind | None],
    folder: Path,
) -> Iterator[tuple[KeyPath, str]]:
    """The faults of all adapters. `default_policy` is the server's, `kinds` those of all guards.

    Values of the wrong type are ignored.
    """
    taken = {model["name"] for _, model in models if isinstance(model.get("name"), str)}
    for index, model in models:
        if "adapters" in model and model.get("engine", "transformers") != "transformers":
            yield ("models", index, "adapters"), 'is for engine = "transformers": leave it out'
        for path, adapter in adapters_of(index, model):
            if isinstance(name := adapter.get("name"), str):
                if name in taken:
                    yield (*path, "name"), "is the name of another model or adapter: change one"
                taken.add(name)
            if isinstance(source := adapter.get("source"), str):
                try:
                    LoraSettings.read(folder / source)
                except UnfitAdapter as error:
                    yield (*path, "source"), f"the adapter {error}"
            policy = adapter.get("default_policy", model.get("default_policy", default_policy))
            guards = policies.get(policy, {}).get("guards") if isinstance(policy, str) else None
            inside = [
                guard
                for guard in (guards if isinstance(guards, list) else [])
                if isinstance(guard, str) and kinds.get(guard) == "language"
            ]
            if inside and adapter.get("guards") != OF_BASE:
                yield (
                    path,
                    f'its default policy "{policy}" has guards inside the model '
                    f"({', '.join(inside)}), which were fitted without the adapter: set another "
                    f'default_policy, or allow them with guards = "{OF_BASE}"',
                )
