"""Many guards for a measurement: copies of a shipped one, and the configuration that serves them.

Each copy's gate is turned a little and its directions too, so that no two are the same. Those of
*silent* traffic have thresholds that nothing reaches; the others keep what they were fitted with.
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
    """What guarded requests carry: a guard that fires on its topic or one that never does, looking
    at every generated token or at the prompt alone."""

    fires: bool
    rechecks: bool

    @property
    def name(self) -> str:
        """As it stands in tables and in the names of guards."""
        return f"{'fires' if self.fires else 'silent'}-{'recheck' if self.rechecks else 'prompt'}"


TRAFFIC = tuple(Traffic(fires, rechecks) for fires in (False, True) for rechecks in (True, False))


def write_guards(folder: Path, count: int, traffic: Sequence[Traffic]) -> Path:
    """`count` guards, dealt to the kinds of `traffic` in turn, each with a policy of its own name;
    the configuration's path. Raises ValueError where a kind would have none."""
    if count < len(traffic):
        raise ValueError(f"{count} guards are too few for {len(traffic)} kinds of traffic")
    fitted = Artifact.load(TOPIC / "steer.safetensors")
    parts = ['[server]\ndefault_policy = "none"\n']
    for number in range(count):
        kind = traffic[number % len(traffic)]
        name = guard_name(kind, number // len(traffic))
        path = folder / f"{name}.safetensors"
        _copy(fitted, number, kind).save(path)
        parts.append(f'[[guards]]\nname = "{name}"\nartifact = {json.dumps(str(path))}')
        if not kind.fires:
            parts.append(f"threshold = {NEVER}")
        if not kind.rechecks:
            parts.append("recheck = false")
        parts.append(f'[policies.{name}]\nguards = ["{name}"]\naction = "steer"\n')
    config = folder / "config.toml"
    config.write_text("\n".join(parts))
    return config


def guard_name(kind: Traffic, number: int) -> str:
    """Of the guard, and of its policy."""
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
