"""What the server and the process of a fit say to each other: the job, and reports of progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from guard.config.schema import ModelConfig
from server.erasures.record import Record

EVERY_S = 0.2
"""Between two lines about the progress of a stage."""


class Job(BaseModel):
    """What is to be fitted: the erasure in `folder`, on the served model from `source`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    erasure: str
    folder: Path
    name: str
    aliases: tuple[str, ...]
    source: str
    dtype: str
    device: str
    list: str = ""
    """The suppression list that the name is put on, in `list_file`, as `entry`."""
    list_file: Path | None = None
    entry: str = ""

    @classmethod
    def of(cls, record: Record, folder: Path, model: ModelConfig, list_file: Path | None) -> Job:
        """What a record asks for, of a model and, where it has one, a list."""
        asked = record.asked
        return cls(
            erasure=record.id,
            folder=folder,
            name=asked.name,
            aliases=asked.aliases,
            source=model.source,
            dtype=model.dtype,
            device=model.device,
            list=asked.list or "",
            list_file=list_file,
            entry=asked.entry or "",
        )


class Report:
    """Lines of JSON to the server; a `Stages`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, stage: str, total: int) -> Callable[[int], None]:
        done, said = 0, time.monotonic()
        self.send(stage=stage, done=0, total=total)

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            if time.monotonic() - said >= EVERY_S or done == total:
                said = time.monotonic()
                self.send(stage=stage, done=done, total=total)

        return advance

    def send(self, **facts: Any) -> None:
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()
