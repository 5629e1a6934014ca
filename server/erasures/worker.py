"""The process of one fit, seen from the server: started, listened to, ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.artifact import FittedModel
from guard.certificate import Listed
from server.erasures.job import Job
from server.erasures.record import FittedGate

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "server.erasures.fit")
LOG = "fit.log"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_MAX_LINE = 2**24

Listener = Callable[[dict[str, Any]], None]
"""Takes each line of progress: `stage`, `done` and `total`, or a `state`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The stage of a fit, and how much of it is done."""

    stage: str = "waiting"
    done: int = 0
    total: int = 0


class FitFailed(Exception):
    """The fit has ended without guards; the message says why."""


class Result(BaseModel):
    """What a fit has made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: FittedModel
    gates: tuple[FittedGate, ...]
    listed: Listed | None = None
    judgement: str
    figures: dict[str, str]


async def run(job: Job, listen: Listener, command: Sequence[str] = COMMAND) -> Result:
    """Fit in a process of its own, which ends when this call does.

    Raises FitFailed.
    """
    log = job.folder / LOG
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **_ONE_THREAD},
            limit=_MAX_LINE,
        )
    try:
        return await _listened(process, job, listen, log)
    finally:
        # the group of the process, which may have made others
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _listened(
    process: asyncio.subprocess.Process, job: Job, listen: Listener, log: Path
) -> Result:
    assert process.stdin is not None and process.stdout is not None
    # left open: the process ends when it does
    process.stdin.write(job.model_dump_json().encode() + b"\n")
    with suppress(ConnectionError):
        await process.stdin.drain()
    try:
        async for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise FitFailed(str(said["error"]))
            if "result" in said:
                return Result.model_validate(said["result"])
            listen(said)
    except (ValueError, ValidationError) as error:
        logger.error("the fit of %s said something else than its progress: %s", job.erasure, error)
        raise FitFailed("the process of the fit did not keep to its protocol") from error
    status = await process.wait()
    logger.error("the fit of %s ended with status %d; %s has why", job.erasure, status, log)
    raise FitFailed(
        f"the process of the fit ended with status {status}: {LOG} in its folder has why"
    )
