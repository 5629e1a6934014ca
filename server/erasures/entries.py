"""What the process of a fit does for a name of a suppression list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guard.certificate import Change, Listed
from guard.errors import DataError
from server.erasures.job import Job, Report
from server.erasures.store import FITTED, LIST, RESULT


def add_entry(job: Job, report: Report) -> dict[str, Any]:
    """Fit the list with one more name, beside the one that is in use; what the record says of it.

    Raises GuardError.
    """
    # imported here: the process must be at low priority before torch starts its threads
    import torch

    from guard.artifact import Artifact
    from guard.fitting.suppression.lists import Entry, SuppressionLists, entries_of
    from guard.models.chat import TransformersChat

    assert job.list_file is not None
    before = Artifact.load(job.list_file)
    if made := _in_use(job.folder / FITTED / RESULT, before.digest):
        return made
    if job.entry in entries_of(before):
        raise DataError(f"the list {job.list} has an entry {job.entry!r} already")
    torch.set_num_threads(1)
    report.send(stage="loading the model", done=0, total=1)
    chat = TransformersChat.load(job.source, dtype=job.dtype, device=job.device)
    lists = SuppressionLists(chat, report)
    report.send(state="fitting")
    names = [*dict.fromkeys((job.name, *job.aliases))]
    after = lists.grown(before, [Entry(name, job.entry) for name in names])
    concept = f"{after.meta.concept}/{job.entry}"
    change = Change(before=before.digest, after=after.digest)
    made = {
        "model": chat.fitted_model.model_dump(mode="json"),
        "gates": [],
        "listed": Listed(list=job.list, entry=job.entry, concept=concept, added=change).model_dump(
            mode="json"
        ),
        "judgement": "",
        "figures": lists.figures(after, names),
    }
    unfinished, target = job.folder / f".{FITTED}", job.folder / FITTED
    for left in (unfinished, target):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir()
    after.save(unfinished / LIST)
    (unfinished / RESULT).write_text(json.dumps(made), encoding="utf-8")
    unfinished.rename(target)
    return made


def _in_use(result: Path, digest: str) -> dict[str, Any] | None:
    """What an earlier process has made, where its list is the one in use: the server has ended
    before it could say so."""
    try:
        made: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return made if made["listed"]["added"]["after"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
