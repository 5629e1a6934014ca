"""The costs of methods, from the results of cells and what lies beside artifacts."""

from __future__ import annotations

import json
from pathlib import Path

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.data.prompts import ImagePrompt
from guard.evaluation.images.cells import CellResult
from guard.evaluation.images.costs import Cost, costs_of
from guard.evaluation.images.evaluation import EvaluatedCell
from guard.evaluation.images.suite import Cell, ImageSuite


def artifact(folder: Path, name: str, size: int, took_s: float | None) -> GuardConfig:
    path = folder / f"{name}.safetensors"
    path.write_bytes(b"x" * size)
    if took_s is not None:
        report = folder / f"{name}.report.json"
        report.write_text(json.dumps({"took_s": took_s}), "utf-8")
    return GuardConfig(name=name, artifact=path)


def cell(concept: str, kind: str, **seconds: tuple[int, float]) -> EvaluatedCell:
    row = ImagePrompt(concept=concept, kind=kind, prompt="p")
    results = {
        method: CellResult(
            method=method,
            concept=concept,
            kind=kind,
            effort=None,
            part=0,
            digest="d",
            generated=count,
            seconds=total,
            images=(),
        )
        for method, (count, total) in seconds.items()
    }
    return EvaluatedCell(Cell(concept, kind, None, 0, (row,), (0,)), results)


def test_costs_are_means_over_concepts_of_all_guards_of_a_policy(tmp_path: Path) -> None:
    guards = (
        artifact(tmp_path, "knife-a", 100, 3.0),
        artifact(tmp_path, "cat-a", 300, 5.0),
        artifact(tmp_path, "knife-b", 10, None),
        artifact(tmp_path, "cat-b", 10, 1.0),
    )
    policies = {
        **{f"{c}-a": PolicyConfig(guards=(f"{c}-a",)) for c in ("knife", "cat")},
        **{f"{c}-ab": PolicyConfig(guards=(f"{c}-a", f"{c}-b")) for c in ("knife", "cat")},
    }
    config = Config.model_construct(guards=guards, policies=policies)
    methods = {"a": "{concept}-a", "ab": "{concept}-ab", "lost": "{concept}-lost"}
    suite = ImageSuite(model="m", judge=tmp_path, prompts=(), methods=methods, ours="a")
    cells = [
        cell("knife", "direct", bare=(2, 1.0), a=(4, 8.0), ab=(0, 0.0)),
        cell("cat", "pair", bare=(2, 2.0), a=(4, 4.0), ab=(0, 0.0)),
        cell("cat", "clean", bare=(9, 90.0), a=(9, 90.0), ab=(9, 90.0)),
        cell("", "single", bare=(9, 90.0)),
    ]
    costs = costs_of(config, suite, cells)
    assert costs["bare"] == Cost(0.75, 0.0, 0.0)
    assert costs["a"] == Cost(1.5, 4.0, 200.0)
    # the time of one fit is unknown, and no image was generated
    both = costs["ab"]
    assert both.image_s is None and both.fit_s is None and both.size == 210.0
    assert {*costs} == {"bare", "a", "ab"}
