"""Image guards behind the classifiers of a CGCE guard."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from classifiers.heads import Heads
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.cli import app
from guard.errors import ArtifactError
from guard.fitting.images.classifier_gate import gated_by
from steering.images.conditioning import Conditioning
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard

WIDTH, QUERIES, HIDDEN, THRESHOLD = 6, 2, 5, 0.75


def model(fingerprint: str = "encoders") -> FittedModel:
    return FittedModel(
        name="tiny", architecture="Pipeline", fingerprint=fingerprint, layers=1, width=WIDTH
    )


def artifact(method: str, fingerprint: str = "encoders", **fields: Any) -> Artifact:
    tensors = fields.pop("tensors")
    meta = ArtifactMeta(
        method=method,
        concept=fields.pop("concept", "object/knife"),
        created=date(2026, 1, 1),
        model=model(fingerprint),
        seams=("projection",),
        **fields,
    )
    return Artifact(meta, tensors)


def overlay(*, gated: bool = False, **changed: Any) -> Artifact:
    tensors = {"reads.0": torch.ones(1, WIDTH), "writes.to_k": torch.ones(1, 3)}
    settings: dict[str, Any] = {"groups": {"0": ["to_k"]}, "streams": ["text", "pooled"]}
    settings |= {"strength": 1.0, "gated": gated, "bias": 0.5, "threshold": 0.0}
    settings["encoders"] = "encoders"
    if gated:
        tensors |= {f"weights.{stream}": torch.ones(WIDTH) for stream in settings["streams"]}
    numbers = {name: values.numpy() for name, values in tensors.items()}
    return artifact("overlay", "denoiser", tensors=numbers, settings=settings | changed)


def classifiers(seed: int = 0, **changed: Any) -> Artifact:
    heads = members(seed)
    tensors = {f"{part}.text": values.numpy() for part, values in heads.parts().items()}
    tensors["basis.text"] = torch.eye(1, WIDTH).numpy()
    settings = {"streams": ["text"], "threshold": THRESHOLD, "steps": 30}
    calibration = {"recall": 0.9, "resolved": 1.0, "median_steps": 3.0, "moved": 0.1}
    fields = {"settings": settings, "calibration": calibration, "tensors": tensors} | changed
    return artifact(fields.pop("method", "cgce"), **fields)


def members(seed: int) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, QUERIES, WIDTH), (2, QUERIES * WIDTH, HIDDEN), (2, HIDDEN), (2, HIDDEN), (2,)
    return Heads(*[torch.randn(*shape, generator=generator) for shape in shapes])


def prompts(rows: int = 5) -> Conditioning:
    generator = torch.Generator().manual_seed(9)
    states: dict[str, Tensor] = {
        "text": torch.randn(rows, 4, WIDTH, generator=generator),
        "pooled": torch.randn(rows, 1, WIDTH, generator=generator),
    }
    masks = {name: torch.ones(rows, of.shape[1]).bool() for name, of in states.items()}
    return Conditioning(states, masks)


def scores(guards: list[Artifact], text: Conditioning) -> Tensor:
    fitted = [FittedGuard(f"g{i}", a.tensors, a.meta.settings) for i, a in enumerate(guards)]
    return METHODS["overlay"].stacked(fitted, "cpu").sense(text)


@pytest.mark.parametrize("gated", [False, True])
def test_the_score_is_the_mean_logit_of_the_classifiers(gated: bool) -> None:
    text = prompts()
    got = scores([gated_by(overlay(gated=gated), classifiers())], text)[:, 0]
    wanted = []
    for states in text.states["text"]:
        logits = []
        for head in range(2):
            heads = members(0)
            pools = [(states @ q).softmax(0) @ states for q in heads.queries[head]]
            hidden = torch.cat(pools) @ heads.hidden[head] + heads.hidden_bias[head]
            logits.append(torch.nn.functional.gelu(hidden) @ heads.out[head] + heads.out_bias[head])
        wanted.append(sum(logits) / 2)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_guards_with_all_kinds_of_gates_are_stacked() -> None:
    text = prompts()
    guards = [
        overlay(),
        gated_by(overlay(), classifiers(0)),
        overlay(gated=True),
        gated_by(overlay(gated=True), classifiers(1)),
    ]
    together = scores(guards, text)
    for i, guard in enumerate(guards):
        torch.testing.assert_close(together[:, i], scores([guard], text)[:, 0])
    assert together[:, 0].tolist() == [1.0] * 5
    text.states["text"][2, 0, 0] = torch.nan
    assert scores(guards, text)[2].isnan().all()


def test_threshold_and_figures_are_those_of_the_classifiers() -> None:
    gated = gated_by(overlay(gated=True), classifiers())
    settings = gated.meta.settings
    assert settings["threshold"] == THRESHOLD and settings["gated"] is True
    assert settings["gate_digest"] == classifiers().digest and "bias" not in settings
    assert gated.meta.calibration == {"recall": 0.9}
    assert {name.partition(".")[0] for name in gated.tensors} == {
        *("reads", "writes", "queries", "hidden", "hidden_bias", "out", "out_bias")
    }


def test_the_score_that_a_strength_follows_goes_with_its_gate() -> None:
    """It is of the linear score; the classifiers' has other units."""
    assert (
        "full_score"
        not in gated_by(overlay(gated=True, full_score=1.5), classifiers()).meta.settings
    )


def test_another_gate_takes_the_place_of_the_first() -> None:
    text = prompts()
    once = gated_by(gated_by(overlay(), classifiers(0)), classifiers(1))
    torch.testing.assert_close(
        scores([once], text), scores([gated_by(overlay(), classifiers(1))], text)
    )


@pytest.mark.parametrize(
    ("guard", "gate", "message"),
    [
        (classifiers(), classifiers(), "guards of method 'cgce' have no gate that could be"),
        (overlay(), overlay(), "the gate is of method 'overlay', which has no classifiers"),
        (overlay(), classifiers(concept="object/cat"), "for 'object/knife', its gate for 'object/"),
        (overlay(), classifiers(fingerprint="others"), "fitted on the text encoders of 'tiny'"),
    ],
)
def test_two_that_do_not_go_together_are_refused(
    guard: Artifact, gate: Artifact, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        gated_by(guard, gate)


def test_an_unknown_kind_of_gate_is_named() -> None:
    guard = gated_by(overlay(), classifiers())
    other = overlay(gated=True, gate="oracle")
    with pytest.raises(ValueError, match="g1: gate must be 'linear' or 'heads', not 'oracle'"):
        scores([guard, other], prompts())


def test_the_command_writes_the_guard_and_reports_faults_in_one_line(tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "out"))
    overlay().save(one)
    classifiers().save(two)
    done = CliRunner().invoke(
        app, ["gate", str(one), "--by", str(two), "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "threshold": THRESHOLD,
        "recall": 0.9,
        "artifact": str(out),
        "digest": gated_by(overlay(), classifiers()).digest,
    }
    assert Artifact.load(out).meta.settings["gate_streams"] == ["text"]
    for by, to, line in (
        (one, out, f"{one}, gated by {one}: the gate is of method 'overlay'"),
        (two, two, f"{two}: is one of the two artifacts: give another --out"),
        (two, tmp_path / "out.bin", "an artifact's name ends in .safetensors"),
    ):
        failed = CliRunner().invoke(app, ["gate", str(one), "--by", str(by), "--out", str(to)])
        assert failed.exit_code == 1 and line in failed.stderr
        assert failed.stderr.strip().count("\n") == 0
