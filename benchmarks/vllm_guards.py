"""Many guards for a measurement: copies of a shipped guard, and a configuration with all of them.

The gates and directions of the copies have a little noise, so that no two are the same. Guards of
*silent* traffic have thresholds that nothing reaches; the others keep their fitted thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guard.artifact import Artifact

TOPIC = Path("examples/harry-potter")
NEVER = 1e9
"""A threshold that nothing reaches."""


@dataclass(frozen=True)
class Traffic:
    """A kind of guarded requests: their guard fires on its topic or never, and checks every
    generated token or the prompt alone."""

    fires: bool
    rechecks: bool

    @property
    def name(self) -> str:
        """The name in tables and in the names of guards."""
        return f"{'fires' if self.fires else 'silent'}-{'recheck' if self.rechecks else 'prompt'}"


TRAFFIC = tuple(Traffic(fires, rechecks) for fires in (False, True) for rechecks in (True, False))


def write_guards(
    folder: Path, count: int, traffic: Sequence[Traffic], fitted: Artifact | None = None
) -> Path:
    """Write `count` guards, one for each kind of `traffic` in turn, and a policy named after each.

    They are copies of `fitted`, None for the shipped guard. Returns the path of the configuration.
    Raises ValueError where a kind would have no guard.
    """
    if count < len(traffic):
        raise ValueError(
            f"{count} guards are too few for {len(traffic)} kinds of traffic: write more"
        )
    fitted = fitted or Artifact.load(TOPIC / "steer.safetensors")
    parts = ['[server]\ndefault_policy = "none"\n']
    for number in range(count):
        kind = traffic[number % len(traffic)]
        name = guard_name(kind, number // len(traffic))
        path = folder / f"{name}.safetensors"
        _copy(fitted, number, kind).save(path)
        parts.append(f'[[guards]]\nname = "{name}"\nartifact = {json.dumps(path.name)}')
        if not kind.fires:
            parts.append(f"threshold = {NEVER}")
        if not kind.rechecks:
            parts.append("recheck = false")
        parts.append(f'[policies.{name}]\nguards = ["{name}"]\naction = "steer"\n')
    config = folder / "config.toml"
    config.write_text("\n".join(parts))
    return config


def guard_name(kind: Traffic, number: int) -> str:
    """The name of a guard, and of its policy."""
    return f"{kind.name}-{number}"


def _copy(fitted: Artifact, number: int, kind: Traffic) -> Artifact:
    noise = np.random.default_rng(number)
    tensors = {
        name: values + noise.standard_normal(values.shape, np.float32) * values.std() * 0.01
        for name, values in fitted.tensors.items()
    }
    settings = fitted.meta.settings if kind.fires else fitted.meta.settings | {"recheck": NEVER}
    update = {"settings": settings, "tensors_sha256": ""}
    return Artifact(fitted.meta.model_copy(update=update), tensors)
