"""The section of the configuration for LoRA adapters of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from guard.config.section import Name, Section


class AdapterConfig(Section):
    """One of `[[models.adapters]]`, served as a model of its own beside the one that it is for.

    `source` is a folder as PEFT saves it. `default_policy` None is that of the model. `guards`
    "of-base": the guards of the model act on its requests, although they were fitted without it.
    """

    name: Name
    source: Annotated[Path, Field(strict=False)]
    default_policy: Name | None = None
    guards: Literal["of-base"] | None = None
