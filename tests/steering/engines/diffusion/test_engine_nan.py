"""NaN in a conditioning, a prediction or a reading makes its row invalid, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import ShiftGuards, carried
from tests.steering.engines.diffusion.running import (
    STARTS,
    Generated,
    assert_bare,
    bare,
    leave,
    new_engine,
    run,
)
from tests.steering.engines.diffusion.tiny import shared


class NanGuards:
    """A guard whose action makes a row's conditioning NaN."""

    names: Sequence[str] = ("spoil",)

    def sense(self, text: Conditioning) -> Tensor:
        return torch.ones(text.rows, 1)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        spoilt = text.with_states({n: s * torch.nan for n, s in text.states.items()})
        return Refinement(spoilt, due.any(1).long(), torch.zeros_like(strength) - 9)


def test_a_conditioning_with_nan_makes_its_row_invalid_alone() -> None:
    engine = new_engine(shared("emoji"), NanGuards())
    starts = [STARTS[0], replace(STARTS[4], guards=[carried("spoil")]), STARTS[3]]
    engine.start(starts)
    assert engine.invalid == [False, True, False]
    assert not engine.readings(1)["spoil"].valid
    got: Generated = {}
    live = [0, 1, 2]
    while engine.rows:
        done = engine.step()
        for row in done:
            if engine.invalid[row]:
                with pytest.raises(ValueError, match=f"row {row} has met NaN"):
                    engine.images([row])
                continue
            got[live[row]] = engine._slots.latents[row].clone(), engine.images([row])[0]
        leave(engine, live, done)
    # index 2 here is STARTS[3]
    assert sorted(got) == [0, 2]
    assert_bare({0: got[0], 3: got[2]})


def test_a_prediction_with_nan_makes_its_row_invalid_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = tiny.built("emoji")
    engine = new_engine(family, ShiftGuards("loud"))
    predict = family.predict

    def spoilt(latents: Tensor, times: Tensor, text: Conditioning, guidance: Tensor) -> Tensor:
        output = predict(latents, times, text, guidance)
        # the row at the fifth of its six steps
        return (
            torch.where((guidance == 1.0) & (times < 400), torch.nan, 1.0)[:, None, None, None]
            * output
        )

    starts = [replace(start, guards=[carried("loud", fires=False)]) for start in STARTS]
    expected = run(engine, starts, joining=2)
    monkeypatch.setattr(family, "predict", spoilt)
    engine.start(starts)
    invalid = []
    live, got = list(range(5)), {}
    while engine.rows:
        done = engine.step()
        invalid.append({live[row] for row in range(engine.rows) if engine.invalid[row]})
        for row in done:
            if not engine.invalid[row]:
                got[live[row]] = engine.images([row])[0]
        if 1 in invalid[-1]:
            assert not engine.readings(live.index(1))["loud"].valid
        leave(engine, live, done)
    assert invalid[0] == set() and invalid[-1] == {1}
    assert sorted(got) == [0, 2, 3, 4]
    assert all(np.array_equal(got[index], expected[index][1]) for index in got)


def test_a_guard_that_reads_nan_makes_a_row_invalid_but_not_its_image() -> None:
    class Blind(ShiftGuards):
        def sense(self, text: Conditioning) -> Tensor:
            return super().sense(text) * torch.nan

    engine = new_engine(shared("emoji"), Blind("blind"))
    engine.start([replace(STARTS[0], guards=[carried("blind")])])
    assert engine.invalid == [True]
    while not engine.step():
        pass
    # the policy decides whether it is returned
    assert np.array_equal(engine.images([0])[0], bare("emoji", 0)[1])
