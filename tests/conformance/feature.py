"""One thing that is tried with each client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Feature:
    """One thing that is tried; `do` is what the driver does, empty for the client's probe."""

    name: str
    do: str
    script: str
    prompt: str
    check: Callable[[Any], None]
    """Raises Wrong; takes what the way of the request lets see."""
    stream: bool = False
    key: str = ""
    """In place of the key whose default is the policy."""
    timeout: float = 20.0
    forced: bool = False
    """Whether the model has to call the function."""
    retries: int = 0


def both(
    name: str, do: str, script: str, prompt: str, check: Callable[[Any], None], **options: Any
) -> tuple[Feature, Feature]:
    """A feature, whole and streamed."""
    return (
        Feature(name, do, script, prompt, check, **options),
        Feature(f"{name}, streamed", do, script, prompt, check, stream=True, **options),
    )
