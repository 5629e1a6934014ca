"""vLLM's workers: the guards at the model's layers, for each revision of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerBase

from guard.config.schema import load_config
from guard.errors import ArtifactError, ModelError
from guard.plans.language import ServedModel
from guard.plans.revision import Revision, RevisionEntry
from server.vllm.served import served_by, served_name
from steering.engines.errors import Unsupported
from steering.engines.vllm.layers import decoder_layers
from steering.engines.vllm.reports import RowPlan
from steering.engines.vllm.runners.guarded import GuardedRunner
from steering.engines.vllm.runners.patching import guarded_runner, surround_runners
from steering.hidden.bank import HiddenBank
from steering.methods.stacking import MethodGuard, stacks

LOAD = "inference_guard_load"
"""Name of the method of workers that reloads the configuration."""


@dataclass(frozen=True)
class _Loaded:
    entry: RevisionEntry
    guards: Sequence[MethodGuard]


class WorkerGuards:
    """The guards of one model runner: those of the newest revision, and those that requests of
    earlier revisions may still carry."""

    def __init__(self, path: Path, runner: Any) -> None:
        """Raises GuardError."""
        self._path, self._name = path, served_name(runner.vllm_config)
        self._served = _served(runner)
        self._loaded = self._read(0)
        bank, room = self._bank(self._loaded), load_config(path).server.guard_room
        self.guarded: GuardedRunner = guarded_runner(runner, bank, _plans(self._loaded), room=room)

    def load(self, number: int, expected: Sequence[str], keep: Sequence[str]) -> None:
        """Load revision `number`, whose policies must have the `expected` keys; policies with a key
        in `keep` stay.

        Raises GuardError where the configuration is not the one that the front end has read, or its
        guards cannot be stacked beside those that stay, and Unsupported for layers without hooks.
        """
        revision = self._read(number)
        if sorted(revision) != sorted(expected):
            raise ArtifactError("the configuration changed while it was read: load it again")
        needed = {*keep, *self.guarded.carried}
        kept = {key: policy for key, policy in self._loaded.items() if key in needed}
        loaded = kept | revision
        self.guarded.swap(self._bank(loaded), _plans(loaded))
        self._loaded = loaded

    def restore(self) -> None:
        """Stack the guards anew: vLLM has discarded what was loaded along with the model."""
        self.guarded.restore(self._bank(self._loaded), _plans(self._loaded))

    def _read(self, number: int) -> dict[str, _Loaded]:
        revision = Revision(load_config(self._path), self._served, self._name, number)
        return {
            entry.key: _Loaded(entry, [revision.guards[row.name] for row in entry.rows])
            for entry in revision.entries.values()
            if not entry.plan.refuses
        }

    def _bank(self, loaded: Mapping[str, _Loaded]) -> HiddenBank:
        guards = {guard.name: guard for policy in loaded.values() for guard in policy.guards}
        device = self._served.device
        try:
            return HiddenBank(stacks([*guards.values()], device), device)
        except ValueError as error:
            raise ArtifactError(str(error)) from error


def _served(runner: Any) -> ServedModel:
    device = str(runner.device)
    served = served_by(runner.vllm_config, device)
    try:
        depth = len(decoder_layers(runner.model))
    except ValueError as error:
        raise ModelError(f"{runner.vllm_config.model_config.model}: {error}") from error
    if depth != served.depth:
        raise ModelError(
            f"vLLM has {depth} decoder layers, and the checkpoint {served.depth}: this "
            "architecture cannot be guarded"
        )
    return served


def _plans(loaded: Mapping[str, _Loaded]) -> Mapping[str, RowPlan]:
    return {
        key: RowPlan(
            policy.entry.rows,
            blocks=policy.entry.plan.action == "block",
            closed=policy.entry.plan.on_error == "closed",
            shadows=policy.entry.shadows,
        )
        for key, policy in loaded.items()
    }


def patch(path: Path) -> None:
    """Guard the models that vLLM's workers in this process run."""

    def guard_runner(runner: Any) -> GuardedRunner:
        runner.guard_worker = WorkerGuards(path, runner)
        guarded: GuardedRunner = runner.guard_worker.guarded
        return guarded

    def load(self: Any, number: int, expected: Sequence[str], keep: Sequence[str]) -> None:
        self.model_runner.guard_worker.load(number, expected, keep)

    surround_runners(guard_runner)
    setattr(WorkerBase, LOAD, load)
    Worker.reload_weights = _around_reload_weights(Worker.reload_weights)
    # the one of a CPU does not call the other's
    for worker in (Worker, CPUWorker):
        worker.wake_up = _around_wake_up(worker.wake_up)


def _around_wake_up(original: Any) -> Any:
    @wraps(original)
    def wake_up(self: Any, tags: list[str] | None = None) -> None:
        original(self, tags)
        # the second level of sleep drops the memory that was taken while the model was loaded
        if tags is None or "weights" in tags:
            self.model_runner.guard_worker.restore()

    return wake_up


def _around_reload_weights(original: Any) -> Any:
    @wraps(original)
    def reload_weights(
        self: Any,
        weights_iterator: Any = None,
        weights_path: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if weights_iterator is not None or weights_path is not None:
            raise Unsupported(
                "guards are bound to the weights that they were fitted on: start vLLM with the "
                "other weights in place of loading them into a running engine"
            )
        original(self, *args, **kwargs)

    return reload_weights
