"""A configuration of every fitted eraser, each alone and with IRECE behind it.

`python -m examples.emoji.fit` writes it beside the artifacts, for the suite `erasers.toml`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from guard.artifact import Artifact
from steering.methods import method_named

FITTED = Path(__file__).parent / "fitted"
MODEL = '[[models]]\nname = "emoji"\nsource = "emoji"\nengine = "diffusers"\n'


def write_configuration(folder: Path) -> Path:
    """Write `config.toml` with a policy for each artifact of a folder and for the guards that are
    committed, and one with the concept's IRECE behind it, where that is fitted."""
    committed = [
        path for method in ("cgce", "irece") for path in FITTED.glob(f"*-{method}.safetensors")
    ]
    artifacts = sorted([*folder.glob("*.safetensors"), *committed], key=lambda path: path.stem)
    names = {path.stem for path in artifacts}
    entries = [entry for path in artifacts for entry in _entries(path, folder, names)]
    config = folder / "config.toml"
    config.write_text("\n".join([MODEL, *entries]), "utf-8")
    return config


def _entries(path: Path, folder: Path, names: set[str]) -> Iterator[str]:
    name, meta = path.stem, Artifact.load(path).meta
    action = method_named(meta.method).action
    artifact = os.path.relpath(path, folder)
    yield f'[[guards]]\nname = "{name}"\nartifact = "{artifact}"\n'
    yield f'[policies.{name}]\nguards = ["{name}"]\naction = "{action}"\n'
    behind = f"{meta.concept.rpartition('/')[2]}-irece"
    if behind in names and behind != name:
        yield f'[policies.{name}-irece]\nguards = ["{name}", "{behind}"]\naction = "{action}"\n'


if __name__ == "__main__":
    write_configuration(FITTED / "baselines")
