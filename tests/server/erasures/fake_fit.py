"""Stands for the process that fits: takes an artifact that is there in place of one that it fits.

`python fake_fit.py ARTIFACT`; the name of the concept says what goes wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

from guard.artifact import Artifact
from guard.certificate import Gate
from server.erasures.fit import Job, Report
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


if __name__ == "__main__":
    main()
