"""The process that fits one erasure beside a running server, at the lowest priority.

The job comes as the first line of its input, JSON; its progress goes out as lines of JSON. The end
of the input means that the server is gone, and so does the process go.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from guard.certificate import Gate
from guard.config.schema import ModelConfig
from guard.errors import GuardError
from server.erasures.entries import add_entry
from server.erasures.record import FittedGate, Record
from server.erasures.store import DOCUMENTS, FITTED

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


def fit(job: Job, report: Report) -> dict[str, Any]:
    """Fit and write the guards; what the record says of them. Raises GuardError."""
    if job.list_file is not None:
        return add_entry(job, report)
    # imported here: the process must be at low priority before torch starts its threads
    import torch

    from guard.artifact import Artifact
    from guard.fitting.erasure.documents import read_documents
    from guard.fitting.erasure.forget import forget, save
    from guard.fitting.erasure.report import HTTP
    from guard.fitting.steering.artifacts import file_name
    from guard.models.chat import TransformersChat

    torch.set_num_threads(1)
    report.send(stage="loading the model", done=0, total=1)
    chat = TransformersChat.load(job.source, dtype=job.dtype, device=job.device)
    documents = read_documents(sorted((job.folder / DOCUMENTS).iterdir()))
    forgotten = forget(
        chat,
        job.name,
        job.aliases,
        documents,
        report,
        collected=lambda belonging: report.send(state="fitting"),
    )
    unfinished, target = job.folder / f".{FITTED}", job.folder / FITTED
    for left in (unfinished, target):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir()
    files = save(chat, forgotten, unfinished / f"{file_name(job.name)}.safetensors", HTTP)
    gates = []
    for path in files.artifacts:
        artifact = Artifact.load(path)
        concept = artifact.meta.concept
        guard = f"{job.erasure}/{concept.rpartition('/')[2]}"
        gate = Gate(guard=guard, concept=concept, artifact=artifact.digest)
        gates.append(FittedGate(gate=gate, file=path.name).model_dump(mode="json"))
    unfinished.rename(target)
    return {
        "model": chat.fitted_model.model_dump(mode="json"),
        "gates": gates,
        "judgement": files.report["judgement"],
        "figures": files.report["figures"],
    }


def main() -> None:
    """Run one job."""
    os.nice(19)
    # what a library prints must not get into the lines of JSON
    report = Report(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    try:
        report.send(result=fit(job, report))
    except GuardError as error:
        report.send(error=error.message)


def _end_with_the_server() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
