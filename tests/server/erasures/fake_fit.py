"""Stands for the process that fits: takes an artifact that is there in place of one that it fits.

`python fake_fit.py ARTIFACT`; the name of the concept says what goes wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from guard.artifact import Artifact
from guard.certificate import Gate
from guard.errors import GuardError
from server.erasures.entries import add_entry
from server.erasures.job import Job, Report
from server.erasures.record import FittedGate
from server.erasures.store import FITTED


def main() -> None:
    report = Report(sys.stdout)
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    report.send(stage="what belongs to it", done=1, total=6)
    if job.name == "Unknown":
        report.send(error="tiny seems to know nothing of 'Unknown'")
        return
    report.send(state="fitting")
    (job.folder / "pid").write_text(str(os.getpid()))
    if job.name == "Crash":
        print("Segmentation fault", file=sys.stderr)
        os._exit(3)
    while job.name == "Slow" and not (job.folder / "go").exists():
        time.sleep(0.01)
    if job.list_file is not None:
        _list(job, report)
        return
    report.send(stage="bare answers", done=2, total=2)
    artifact = Artifact.load(sys.argv[1])
    (job.folder / FITTED).mkdir()
    shutil.copy(sys.argv[1], job.folder / FITTED / "tale-tale.safetensors")
    guard = f"{job.erasure}/tale"
    gate = Gate(guard=guard, concept=artifact.meta.concept, artifact=artifact.digest)
    fitted = FittedGate(gate=gate, file="tale-tale.safetensors")
    result = {
        "model": artifact.meta.model.model_dump(mode="json"),
        "gates": [fitted.model_dump(mode="json")],
        "judgement": "usable",
        "figures": {"fired_by_name": "100.0% (20/20; 83.9% to 100.0%)"},
    }
    report.send(result=result)


class Lists:
    """In place of those that read a model: whoever is added last fires, and nobody else."""

    def __init__(self, chat: object, progress: object) -> None: ...

    def grown(self, artifact: Artifact, entries: Any) -> Artifact:
        tensors = {name: np.asarray(values) for name, values in artifact.tensors.items()}
        for name in ("gates", "bias", "centres"):
            more = np.repeat(tensors[name][:1], len(entries), 0)
            tensors[name] = np.concatenate([tensors[name], more])
        tensors["bias"] = np.ones_like(tensors["bias"])
        tensors["bias"][-1] = 2.0
        every = [*_ids(artifact), *(entry.id for entry in entries)]
        settings = {**artifact.meta.settings, "entries": every}
        update = {"settings": settings, "tensors_sha256": ""}
        return Artifact(artifact.meta.model_copy(update=update), tensors)

    def figures(self, artifact: Artifact, names: list[str]) -> dict[str, str]:
        return {"fired_by_name": f"100.0% ({len(names)}/{len(names)}; 20.7% to 100.0%)"}


def _ids(artifact: Artifact) -> list[Any]:
    entries = artifact.meta.settings["entries"]
    assert isinstance(entries, list)
    return [*entries]


def _list(job: Job, report: Report) -> None:
    """What the real process does, without torch, which takes seconds to load."""
    assert job.list_file is not None
    model = Artifact.load(job.list_file).meta.model
    chat = SimpleNamespace(load=lambda *_, **__: SimpleNamespace(fitted_model=model))
    stubs: dict[str, Any] = {
        "torch": SimpleNamespace(set_num_threads=lambda count: None),
        "guard.models.chat": SimpleNamespace(TransformersChat=chat),
        "guard.fitting.suppression.lists": SimpleNamespace(
            Entry=lambda name, id: SimpleNamespace(name=name, id=id),
            SuppressionLists=Lists,
            entries_of=_ids,
        ),
    }
    with patch.dict(sys.modules, stubs):
        try:
            report.send(result=add_entry(job, report))
        except GuardError as error:
            report.send(error=error.message)


if __name__ == "__main__":
    main()
