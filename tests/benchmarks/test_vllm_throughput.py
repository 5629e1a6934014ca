"""The throughput benchmark of the vLLM plugin, with fake engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from benchmarks.vllm_engine import Engine, Round
from benchmarks.vllm_guards import NEVER, TRAFFIC, Traffic, guard_name, write_guards
from benchmarks.vllm_throughput import Side, compare, plan
from guard.artifact import Artifact
from guard.config.schema import load_config


class FakeEngine:
    """A round takes `seconds`, and all guards of its requests fire or none."""

    def __init__(self, seconds: float, fires: bool = False, token: int = 1) -> None:
        self.seconds, self.fires, self.token = seconds, fires, token

    def round(self, policies: Sequence[str]) -> Round:
        return Round(
            seconds=self.seconds,
            cpu=self.seconds / 2,
            plugin_share=0.25,
            plugin_step=0.5,
            first_token=1.0,
            verdicts=len(policies),
            fired=len(policies) if self.fires else 0,
            tokens=[[1], [self.token]],
        )


def _compare(**engines: FakeEngine) -> dict[str, dict[str, float]]:
    sides = [Side(n, n, () if n == "bare" else ("p",)) for n in engines]
    result = compare({n: cast("Engine", engine) for n, engine in engines.items()}, sides, 3)
    return cast("dict[str, dict[str, float]]", result["sides"])


def test_throughput_is_that_of_the_first_side_in_the_same_round() -> None:
    sides = _compare(bare=FakeEngine(2.0), slow=FakeEngine(4.0, token=2))
    wall, cpu = (cast("dict[str, float]", sides["slow"][clock]) for clock in ("wall", "cpu"))
    assert wall["ratio"] == cpu["ratio"] == 0.5
    assert wall["seconds"] == 4.0 and cpu["seconds"] == 2.0
    assert sides["slow"]["own"] == 0.25 and sides["slow"]["step"] == 0.5
    assert sides["slow"]["same"] == 1 and sides["bare"]["same"] == 2


@pytest.mark.parametrize("side, fires", [("fires", False), ("silent", True)])
def test_a_side_whose_guards_act_against_its_name_is_refused(side: str, fires: bool) -> None:
    with pytest.raises(SystemExit, match=f"{side}: the guards of"):
        _compare(**{"bare": FakeEngine(1.0), side: FakeEngine(1.0, fires)})


def test_few_guards_have_an_engine_for_each_kind() -> None:
    engines, sides = plan([1, 16], 32)
    assert list(engines) == ["1 silent-recheck", "1 fires-recheck", "16"]
    by_name = {side.name: side for side in sides}
    assert sides[0] == Side("bare", "bare")
    assert by_name["16 idle"] == Side("16 idle", "16")
    assert len(by_name["1 silent-recheck"].policies) == 1
    assert len(by_name["16 fires-prompt"].policies) == 4
    assert {side.engine for side in sides} == {"bare", *engines}


def test_guards_differ_and_those_of_silent_traffic_cannot_fire(tmp_path: Path) -> None:
    config = load_config(write_guards(tmp_path, 8, TRAFFIC))
    assert len(config.guards) == len({guard.name for guard in config.guards}) == 8
    assert len({Artifact.load(guard.artifact).digest for guard in config.guards}) == 8
    by_name = {guard.name: guard for guard in config.guards}
    silent = by_name[guard_name(Traffic(fires=False, rechecks=True), 1)]
    fires = by_name[guard_name(Traffic(fires=True, rechecks=False), 1)]
    assert silent.threshold == NEVER and silent.recheck is None
    assert Artifact.load(silent.artifact).meta.settings["recheck"] == NEVER
    assert fires.threshold is None and fires.recheck is False
    with pytest.raises(ValueError, match="too few"):
        write_guards(tmp_path, 3, TRAFFIC)
