"""The process that fits: what it writes and says, and that it ends with the server."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.artifact import Artifact
from guard.fitting.erasure.report import HTTP
from server.erasures import worker
from server.erasures.fit import fit
from server.erasures.job import Job, Report
from tests.server.tiny_text_service import steer_meta, steer_tensors

ID = "er-0123456789ab"


def job(folder: Path, **more: Any) -> Job:
    facts = {
        "erasure": ID,
        "folder": folder,
        "name": "Märchen",
        "aliases": ["Tale"],
        "source": "no such model",
        "dtype": "float32",
        "device": "cpu",
    }
    return Job.model_validate(facts | more)


def test_what_is_fitted_is_there_as_a_whole_and_named_after_the_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "000.txt").write_text("A text.")
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "left.safetensors").touch()
    meta = steer_meta("f" * 64).model_copy(update={"concept": "concept/marchen/victor"})
    artifact = Artifact(meta, steer_tensors())
    said = io.StringIO()
    asked: list[Any] = []

    def forget(
        chat: Any, name: str, aliases: Any, documents: Any, progress: Any, collected: Any
    ) -> object:
        asked.extend([name, aliases, documents])
        advance = progress("what belongs to it", 2)
        advance(2)
        collected(None)
        return object()

    def save(chat: Any, forgotten: object, out: Path, parameters: object) -> Any:
        assert parameters == HTTP
        assert out.name == "marchen.safetensors" and out.parent.name == ".fitted"
        path = out.with_name("marchen-victor.safetensors")
        artifact.save(path)
        report = {"judgement": "usable", "figures": {"leaks": "-"}}
        return SimpleNamespace(artifacts=(path,), report=report)

    chat = SimpleNamespace(fitted_model=artifact.meta.model)
    monkeypatch.setattr("guard.models.chat.TransformersChat.load", lambda *_, **__: chat)
    monkeypatch.setattr("guard.fitting.erasure.forget.forget", forget)
    monkeypatch.setattr("guard.fitting.erasure.forget.save", save)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    result = worker.Result.model_validate(fit(job(tmp_path), Report(said)))
    assert asked == ["Märchen", ("Tale",), ["A text."]]
    (each,) = result.gates
    assert each.gate.guard == f"{ID}/victor" and each.gate.artifact == artifact.digest
    assert Artifact.load(tmp_path / "fitted" / each.file).digest == artifact.digest
    assert [path.name for path in (tmp_path / "fitted").iterdir()] == [each.file]
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert {"state": "fitting"} in lines
    assert {"stage": "what belongs to it", "done": 2, "total": 2} in lines


def test_the_process_ends_where_the_server_is_gone(tmp_path: Path) -> None:
    # the input ends behind the job, as it does where a server is killed
    ended = subprocess.run(
        worker.COMMAND,
        input=job(tmp_path).model_dump_json().encode() + b"\n",
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 1 and b"error" not in ended.stdout


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('no JSON')", "did not keep to its protocol"),
        ('print(\'{"result": {"gates": 1}}\')', "did not keep to its protocol"),
        ("import sys; sys.exit(7)", "ended with status 7"),
        ('print(\'{"error": "too general"}\'); input(); input()', "too general"),
    ],
)
def test_a_process_that_goes_wrong_is_a_fit_that_failed(
    tmp_path: Path, program: str, message: str
) -> None:
    run = worker.run(job(tmp_path), lambda said: None, (sys.executable, "-c", program))
    with pytest.raises(worker.FitFailed, match=message):
        asyncio.run(run)


def test_the_process_is_of_the_lowest_priority_and_leads_its_own_group(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; from server.erasures import fit; "
        "fit.fit = lambda job, report: (_ for _ in ()).throw(fit.GuardError(json.dumps("
        "[os.nice(0), os.getpgrp() == os.getpid(), os.environ['OMP_NUM_THREADS']]))); fit.main()"
    )
    run = worker.run(job(tmp_path), lambda said: None, (sys.executable, "-c", program))
    with pytest.raises(worker.FitFailed) as failed:
        asyncio.run(run)
    assert json.loads(str(failed.value)) == [19, True, "1"]
