"""A guard on copies of its model: bound where it holds, refused where it does not."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers.calibration import threshold_for
from guard.artifact import Artifact
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.errors import ArtifactError, DataError
from guard.fitting.rebinding import drift
from guard.fitting.rebinding.gate import LoadedGate
from guard.fitting.rebinding.rebind import Rebinding, rebind
from guard.fitting.steering.gate_search import ROUNDING
from guard.models.chat import TransformersChat
from tests.guard.fitting.rebinding import copies
from tests.guard.fitting.rebinding.copies import COUNT, RATES, silent

Run = Callable[..., Rebinding]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rebinding")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    return copies.models(folder)


@pytest.fixture(scope="module")
def artifact(folder: Path, models: dict[str, Path]) -> Artifact:
    copies.write_prompts(folder / "data")
    return copies.fitted(models["fitted"], folder / "data")


@pytest.fixture(scope="module")
def rows(folder: Path, artifact: Artifact) -> tuple[list[ForgetPrompt], list[RetainPrompt]]:
    data = folder / "data"
    return (
        read_rows(data / "forget.jsonl", ForgetPrompt),
        read_rows(data / "retain.jsonl", RetainPrompt),
    )


@pytest.fixture(scope="module")
def run(models: dict[str, Path], artifact: Artifact, rows: Any) -> Run:
    def run(name: str, fitted: Artifact = artifact, **more: Any) -> Rebinding:
        forget, retain = rows
        chat = TransformersChat.load(str(models[name]), device="cpu")
        settings = {"max_leaks": 0.2, "max_drop": 0.2, "prompts": COUNT, "progress": silent} | more
        return rebind(chat, fitted, forget, retain, **settings)

    return run


@pytest.fixture(scope="module")
def held(run: Run, models: dict[str, Path]) -> Rebinding:
    original = TransformersChat.load(str(models["fitted"]), device="cpu")
    return run("rounded", original=original)


def test_a_guard_that_holds_is_bound_to_the_copy(held: Rebinding, artifact: Artifact) -> None:
    assert held.faults == []
    meta, parent = held.artifact.meta, held.artifact.meta.parent
    assert parent is not None and parent.digest == artifact.digest
    assert parent.model == artifact.meta.model
    assert meta.model.fingerprint != artifact.meta.model.fingerprint
    assert meta.model.name.endswith("rounded")
    assert parent.settings == {
        name: artifact.meta.settings[name] for name in ("threshold", "recheck")
    }
    unmoved = {"sense_layers", "act_layers", "schedule", "pool", "rest", "strength"}
    assert {k: meta.settings[k] for k in unmoved} == {k: artifact.meta.settings[k] for k in unmoved}
    assert all((held.artifact.tensors[k] == v).all() for k, v in artifact.tensors.items())


def test_its_thresholds_are_those_of_the_validation_split_alone(
    held: Rebinding, artifact: Artifact, models: dict[str, Path], rows: Any
) -> None:
    chat = TransformersChat.load(str(models["rounded"]), device="cpu")
    gate = LoadedGate(artifact, chat, silent)
    known = in_split(rows[1], "validation")
    scores = {near: gate.scores([r for r in known if r.near == near], "") for near in (False, True)}
    expected = max(
        threshold_for(scores[near], rate / 2)
        for near, rate in ((False, RATES.far), (True, RATES.near))
    )
    expected += ROUNDING * statistics.pstdev([*scores[False], *scores[True]])
    settings = held.artifact.meta.settings
    assert settings["threshold"] == pytest.approx(expected, abs=1e-6)
    recheck = settings["recheck"]
    assert isinstance(recheck, float) and recheck >= expected


def test_the_scores_are_those_of_the_runtime(
    artifact: Artifact, models: dict[str, Path], rows: Any
) -> None:
    chat = TransformersChat.load(str(models["rounded"]), device="cpu")
    gate = LoadedGate(artifact, chat, silent)
    prompts = rows[0][:8]
    answers = gate.guarded(prompts, "", threshold=1e9, recheck=None)
    runtime = [answer.readings["rebound"].score for answer in answers]
    assert gate.scores(prompts, "") == pytest.approx(runtime, abs=2e-3)


def test_its_figures_are_counts_on_the_test_split(held: Rebinding) -> None:
    counts = held.figures["held_out"]
    assert counts["leaks"]["of"] == counts["prompts_missed"]["of"] == COUNT
    assert counts["far_changed"]["of"] == counts["near_changed"]["of"] == COUNT
    assert counts["silent_but_changed"] == 0
    assert held.artifact.meta.calibration["held_out"] == counts
    by_prompt = held.figures["drift"]["by_prompt"]
    assert by_prompt["forget"]["prompts"] == COUNT
    assert 0 < by_prompt["forget"]["size_of_95_percent"] < 0.5


def test_what_the_engine_does_not_tell_is_not_counted(
    models: dict[str, Path], artifact: Artifact, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = TransformersChat.load(str(models["rounded"]), device="cpu")
    answer = chat.answer

    def without_readings(prompts: Any, **more: Any) -> Any:
        return [replace(each, readings={}) for each in answer(prompts, **more)]

    monkeypatch.setattr(chat, "answer", without_readings)
    done = rebind(chat, artifact, *rows, max_leaks=0.2, max_drop=0.2, prompts=30, progress=silent)
    assert done.figures["held_out"]["silent_but_changed"] is None


def test_answers_that_change_in_silence_are_refused(
    models: dict[str, Path], artifact: Artifact, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = TransformersChat.load(str(models["rounded"]), device="cpu")
    answer = chat.answer

    def unsteady(prompts: Any, **more: Any) -> Any:
        given = answer(prompts, **more)
        return [replace(e, tokens=(*e.tokens, 5)) for e in given] if "bank" in more else given

    monkeypatch.setattr(chat, "answer", unsteady)
    done = rebind(chat, artifact, *rows, max_leaks=0.2, max_drop=0.2, prompts=30, progress=silent)
    assert "though the guard was silent" in done.faults[0]


def test_a_guard_that_does_not_hold_is_refused(run: Run) -> None:
    faults = run("noisy").faults
    assert any("guarded answers leak" in fault for fault in faults)
    assert any("forget prompts do not fire" in fault for fault in faults)


def test_drift_of_each_prompt_is_counted_in_pairs() -> None:
    before, after = {"far": [0.1, 0.9, 0.2]}, {"far": [0.6, 0.4, 0.2]}
    assert drift.paired(before, after, 0.5) == {
        "far": {
            "prompts": 3,
            "mean_change": 0.0,
            "size_of_95_percent": 0.5,
            "begin_to_fire": 1,
            "cease_to_fire": 1,
        }
    }
    assert drift.fired(after, 0.3) == {"far": pytest.approx(2 / 3)}


def test_a_copy_that_is_none_is_refused(run: Run) -> None:
    with pytest.raises(ArtifactError, match="fits .*fitted' already"):
        run("fitted")


def test_another_model_is_no_original(run: Run, models: dict[str, Path]) -> None:
    other = TransformersChat.load(str(models["noisy"]), device="cpu")
    with pytest.raises(ArtifactError, match="was not fitted on .*leave out --original"):
        run("rounded", original=other)


def test_losses_do_not_add_up_over_bindings(run: Run, held: Rebinding) -> None:
    with pytest.raises(ArtifactError, match="was itself bound to .*bind the artifact that"):
        run("noisy", fitted=held.artifact)


def test_what_is_no_steering_guard_of_this_size_is_refused(run: Run, artifact: Artifact) -> None:
    meta = artifact.meta
    large = meta.model.model_copy(update={"layers": 9})
    for update, said in (
        ({"method": "screen"}, "'screen' cannot be bound"),
        ({"model": large}, "fitted on 9 layers"),
        ({"calibration": {}}, "holds no false_positive_rate"),
    ):
        other = Artifact(meta.model_copy(update=update), artifact.tensors)
        with pytest.raises(ArtifactError, match=said):
            run("rounded", fitted=other)


def test_too_few_prompts_for_the_bound_are_named(run: Run) -> None:
    with pytest.raises(DataError, match=f"needs 59 forget prompts .* it does on {COUNT} of"):
        run("rounded", max_leaks=0.05)


def test_activations_that_are_no_numbers_are_refused(run: Run, artifact: Artifact) -> None:
    infinite = Artifact(
        artifact.meta.model_copy(update={"tensors_sha256": ""}),
        artifact.tensors | {"gates": np.full_like(artifact.tensors["gates"], 3e38)},
    )
    with pytest.raises(ArtifactError, match="are not finite"):
        run("rounded", fitted=infinite)
