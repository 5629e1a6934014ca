"""A guard as commands are given one: an artifact, or the list of guards that a fit has written."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig, ModelConfig
from guard.errors import DataError

MAX_BYTES = 2**24
POLICY = "guards"
"""The name of the only policy of `config_of`."""


def artifacts_of(path: Path) -> list[Path]:
    """The artifacts, absolute. Raises DataError for a file that lists none."""
    if path.suffix != ".toml":
        return [path.absolute()]
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB")
        listed = tomllib.loads(path.read_text("utf-8")).get("guards", [])
        found = [(path.parent / str(entry["artifact"])).absolute() for entry in listed]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no list of guards as a fit writes it: {error}") from error
    if not found:
        raise DataError(f"{path}: lists no guards: name an artifact, or the NAME.toml of a fit")
    return found


def config_of(artifacts: Sequence[Path], model: ModelConfig) -> Config:
    """A configuration of one model and one policy, POLICY, of these artifacts."""
    return Config(
        models=(model,),
        guards=tuple(GuardConfig(name=path.stem, artifact=path.absolute()) for path in artifacts),
        policies={POLICY: PolicyConfig(guards=tuple(path.stem for path in artifacts))},
    )
