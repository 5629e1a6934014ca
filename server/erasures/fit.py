"""The process that fits one erasure beside a running server, at the lowest priority.

The job comes as the first line of its input, JSON; its progress goes out as lines of JSON. The end
of the input means that the server is gone, and so does the process go.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from typing import Any

from guard.certificate import Gate
from guard.errors import GuardError
from server.erasures.entries import add_entry
from server.erasures.job import Job, Report
from server.erasures.record import FittedGate
from server.erasures.store import DOCUMENTS, FITTED


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
