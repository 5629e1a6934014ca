"""Sparse features of the residual stream against their equation, and on rows of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.engines.transformers.engine import TransformersEngine
from steering.hidden.bank import HiddenBank, NoRoom, Room
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.sparse_features import SparseFeatures, activations
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import LAYERS, WIDTH, prompt, tiny_model

ROOM = Room(guards=4, steps=8, pool=4, most=2)
PARTS = ("reads", "offsets", "cuts", "writes")


def fitted(
    name: str, act: tuple[int, ...] = (2, 3), count: int = 3, seed: int = 0, **other: Any
) -> FittedGuard:
    rng = np.random.default_rng(seed)
    layers = len(act)
    tensors = {
        "gates": rng.standard_normal((1, WIDTH)),
        "reads": rng.standard_normal((layers, count, WIDTH)),
        "offsets": rng.standard_normal((layers, count)),
        "cuts": rng.uniform(0.5, 3.0, (layers, count)),
        "writes": rng.standard_normal((layers, count, WIDTH)),
    }
    settings = {"sense_layers": [1], "act_layers": [*act], "pool": 2}
    floats = {key: value.astype("f4") for key, value in (tensors | other).items()}
    return FittedGuard(name, floats, settings)


def states(count: int, seed: int = 5) -> Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def acted(stack: Any, layer: int, h: Tensor, guard: list[int], strength: list[float]) -> Tensor:
    columns, strengths = torch.tensor(guard), torch.tensor(strength)
    change: Tensor = stack.act(layer, h, columns, torch.zeros_like(columns), strengths)
    return change


def slow(guard: FittedGuard, place: int, h: Tensor, strength: float) -> Any:
    """The change of one state, feature by feature."""
    state, total = h.numpy().astype("f8"), np.zeros(WIDTH)
    reads, offsets, cuts, writes = (guard.tensors[name][place].astype("f8") for name in PARTS)
    for read, offset, cut, write in zip(reads, offsets, cuts, writes, strict=True):
        z = read @ state + offset
        if z > cut:
            total -= strength * z * write
    return total


def test_active_features_are_taken_out_and_the_rest_of_a_state_stays() -> None:
    guards = [fitted("a"), fitted("b", act=(3,), count=5, seed=1)]
    stack, h = method_named("sparse").stacked(guards), states(12)
    which, strengths = [0, 1] * 6, [1.0, 1.0, 3.0, 0.0] * 3
    for layer in (2, 3):
        change = acted(stack, layer, h, which, strengths)
        for row, (guard, strength) in enumerate(zip(which, strengths, strict=True)):
            layers = guards[guard].settings["act_layers"]
            expected = np.zeros(WIDTH)
            if layer in layers:
                expected = slow(guards[guard], layers.index(layer), h[row], strength)
            np.testing.assert_allclose(change[row], expected, atol=2e-4)
    assert not acted(stack, 0, h, which, strengths).any()


def test_a_state_without_a_chosen_feature_keeps_its_bits() -> None:
    guard = fitted("a", cuts=np.full((2, 3), 1e6))
    stack, h = method_named("sparse").stacked([guard]), states(8)
    changed = h + acted(stack, 3, h, [0] * 8, [3.0] * 8)
    assert torch.equal(changed, h)


def test_a_feature_is_active_above_its_cut_alone() -> None:
    reads, writes = torch.eye(2), torch.ones(2, 2)
    features = SparseFeatures(reads, torch.zeros(2), torch.tensor([1.0, 0.0]), writes)
    h = torch.tensor([[1.0, 0.0], [1.5, -2.0], [0.5, 0.25]])
    found = activations(*features.parts[:3], h)
    assert found.tolist() == [[0.0, 0.0], [1.5, 0.0], [0.0, 0.25]]


def test_guards_are_replaced_in_place() -> None:
    method = method_named("sparse")
    one = method.stacked([fitted("a")])
    other = method.stacked([fitted("b", seed=7), fitted("c", seed=8, act=(3,))])
    kept = HiddenBank([one], room=ROOM)
    held = [tensor.data_ptr() for tensor in kept.tensors()]
    h = states(2)
    before = acted(kept, 3, h, [0, 0], [1.0, 1.0])
    assert torch.equal(before, acted(one, 3, h, [0, 0], [1.0, 1.0])) and before.any()
    kept.take(HiddenBank([other]))
    assert [tensor.data_ptr() for tensor in kept.tensors()] == held
    for layer in (2, 3):
        assert torch.equal(
            acted(kept, layer, h, [0, 1], [1.0, 1.0]), acted(other, layer, h, [0, 1], [1.0, 1.0])
        )
    assert torch.allclose(kept.sense(1, h)[:, :2], other.sense(1, h), atol=1e-5)
    # a place in the room that nobody has
    assert not acted(kept, 3, h, [3, 3], [1.0, 1.0]).any()
    with pytest.raises(NoRoom, match="guards of 2 features"):
        kept.take(HiddenBank([method.stacked([fitted("b", count=2)])]))


def test_it_acts_on_rows_on_which_it_fires_and_has_something_to_take_out() -> None:
    model = tiny_model()
    loud = fitted("loud", cuts=np.zeros((2, 3)))
    quiet = fitted("quiet", cuts=np.full((2, 3), 1e6))
    stack = method_named("sparse").stacked([loud, quiet])
    engine = TransformersEngine(model, HiddenBank([stack]), capacity=3)
    prompts = [prompt(9, 1), prompt(6, 2), prompt(7, 3)]
    fires, silent = RowGuard("loud", -1e6, 3.0), RowGuard("loud", 1e6, 3.0)
    nothing = RowGuard("quiet", -1e6, 3.0)
    rows, readings = serve(
        engine,
        [start(p, [guard]) for p, guard in zip(prompts, (fires, silent, nothing), strict=True)],
        tokens=20,
    )
    engine.close()
    bare = [generated(model, each, 20) for each in prompts]
    assert ids(rows)[0] != bare[0] and ids(rows)[1:] == bare[1:]
    assert readings[0]["loud"].fired and readings[2]["quiet"].fired
    assert not readings[1]["loud"].fired


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("gates", np.ones((2, WIDTH)), r"gates must be \[sense layers, width\]"),
        ("reads", np.ones((2, 3, WIDTH - 1)), r"reads and writes must be"),
        ("offsets", np.ones((2, 2)), r"must be \[..., features\]"),
        ("cuts", -np.ones((2, 3)), "cuts must be at least 0"),
        ("cuts", np.ones(3), "must have 2 dimensions"),
    ],
)
def test_wrong_tensors_are_refused(key: str, value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=f"guard g.*{fault}"):
        method_named("sparse").stacked([fitted("g", **{key: value})])


def test_features_of_another_width_or_number_of_layers_are_refused() -> None:
    wide = {name: np.ones((2, 3, WIDTH + 1)) for name in ("reads", "writes")}
    with pytest.raises(ValueError, match="33 wide, where the gates' width is 32"):
        method_named("sparse").stacked([fitted("g", **wide)])
    few = fitted("g", act=(3,))
    more = FittedGuard("g", few.tensors, few.settings | {"act_layers": [2, 3]})
    with pytest.raises(ValueError, match=r"reads must be \[act layers, features, width\]"):
        method_named("sparse").stacked([more])


def test_a_guard_must_decide_before_it_acts() -> None:
    with pytest.raises(ValueError, match="before its last sensing layer"):
        method_named("sparse").stacked([fitted("g", act=(0, LAYERS - 1))])
