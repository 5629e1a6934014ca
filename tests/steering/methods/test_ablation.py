"""Ablation and KIF against their equations, and on rows of the engine."""

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
from steering.methods.ablation import AblationGuard, AblationGuards
from steering.methods.fitted import FittedGuard
from steering.methods.kif import KifGuard, KifGuards
from steering.methods.steer import SteerGuards
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import LAYERS, WIDTH, prompt, random_guard, tiny_model

ROOM = Room(guards=4, steps=8, pool=4, most=2)


def orthonormal(layers: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(layers, WIDTH, rank, generator=generator)
    return torch.linalg.qr(drawn).Q.mT.contiguous()


def ablation(
    name: str, act: tuple[int, ...] = (2, 3), rank: int = 2, seed: int = 0
) -> AblationGuard:
    generator = torch.Generator().manual_seed(100 + seed)
    gates = torch.randn(1, WIDTH, generator=generator)
    return AblationGuard(name, (1,), gates, act, orthonormal(len(act), rank, seed), pool=2)


def kif(name: str, act: tuple[int, ...] = (2, 3), rank: int = 2, seed: int = 0) -> KifGuard:
    levels = torch.tensor([[1.0 + i, 0.5 + i] for i in range(len(act))])
    return KifGuard(**vars(ablation(name, act, rank, seed)), levels=levels, bias=-0.25)


def states(count: int, seed: int = 5) -> Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def acted(stack: Any, layer: int, h: Tensor, guard: list[int], strength: list[float]) -> Tensor:
    columns, strengths = torch.tensor(guard), torch.tensor(strength)
    change: Tensor = stack.act(layer, h, columns, torch.zeros_like(columns), strengths)
    return change


def test_an_ablation_takes_its_directions_out() -> None:
    guards = [ablation("a"), ablation("b", act=(3,), rank=1, seed=1)]
    stack, h = AblationGuards(guards), states(4)
    change = acted(stack, 3, h, [0, 1, 0, 1], [1.0, 1.0, 2.0, 0.0])
    for row, (guard, strength) in enumerate(((0, 1.0), (1, 1.0), (0, 2.0), (1, 0.0))):
        basis = guards[guard].directions[-1]
        wanted = h[row].clone()
        for v in basis:
            wanted -= strength * (v @ h[row]) * v
        assert torch.allclose(h[row] + change[row], wanted, atol=1e-5)
    # at strength 1 nothing of it is left, and a guard without the layer changes nothing there
    assert (h[0] + change[0]) @ guards[0].directions[1].T == pytest.approx([0.0, 0.0], abs=1e-4)
    assert not acted(stack, 2, h, [1, 1, 1, 1], [1.0] * 4).any()
    assert not acted(stack, 0, h, [0, 0, 1, 1], [1.0] * 4).any()


def test_a_signature_is_suppressed_as_far_as_it_is_active() -> None:
    guard, h = kif("a"), states(6)
    h[0] = 0.0
    change = acted(KifGuards([guard]), 3, h, [0] * 6, [0.8] * 6)
    for row in range(6):
        along = guard.directions[1] @ h[row]
        mean, deviation = guard.levels[1]
        z = (along.norm() - mean) / deviation
        gate = 1 / (1 + torch.exp(-1.6 * (z - 3)))
        wanted = -0.8 * gate * along @ guard.directions[1]
        assert torch.allclose(change[row], wanted, atol=1e-5)
    # inactive ones are left nearly alone
    active = [float((guard.directions[1] @ h[row]).norm()) for row in range(6)]
    shares = [float(change[row].norm()) / max(active[row], 1e-9) for row in range(6)]
    assert shares[0] == 0.0 and sorted(shares) == [
        s for _, s in sorted(zip(active, shares, strict=True))
    ]


def test_the_score_of_a_signature_has_its_bias_once() -> None:
    guards = [kif("a"), kif("b", seed=3)]
    stack, h = KifGuards(guards), states(3)
    plain = AblationGuards([ablation("a"), ablation("b", seed=3)])
    assert torch.equal(stack.sense(1, h), plain.sense(1, h) - 0.25)
    one = torch.tensor([1])
    assert torch.equal(stack.sense(1, h, one), plain.sense(1, h, one) - 0.25)
    assert not stack.sense(2, h).any()


@pytest.mark.parametrize("make", [ablation, kif])
def test_guards_are_replaced_in_place(make: Any) -> None:
    stack = AblationGuards if make is ablation else KifGuards
    one, other = stack([make("a")]), stack([make("b", seed=7), make("c", seed=8)])
    kept = HiddenBank([one], room=ROOM)
    held = [tensor.data_ptr() for tensor in kept.tensors()]
    h = states(2)
    before = acted(kept, 3, h, [0, 0], [1.0, 1.0])
    assert torch.equal(before, acted(one, 3, h, [0, 0], [1.0, 1.0]))
    kept.take(HiddenBank([other]))
    assert [tensor.data_ptr() for tensor in kept.tensors()] == held
    assert torch.equal(
        acted(kept, 3, h, [0, 1], [1.0, 1.0]), acted(other, 3, h, [0, 1], [1.0, 1.0])
    )
    assert torch.allclose(kept.sense(1, h)[:, :2], other.sense(1, h), atol=1e-5)
    with pytest.raises(NoRoom, match="rank 1"):
        kept.take(HiddenBank([stack([make("b", rank=1)])]))


@pytest.mark.parametrize("make", [ablation, kif])
def test_where_one_stack_has_no_room_no_other_is_replaced(make: Any) -> None:
    stack = AblationGuards if make is ablation else KifGuards

    def bank(seed: int, rank: int) -> HiddenBank:
        steering = SteerGuards([random_guard("steer", seed=seed)])
        return HiddenBank([steering, stack([make("a", rank=rank, seed=seed)])])

    kept = HiddenBank(bank(0, 2).stacks, room=ROOM)
    held = [tensor.clone() for tensor in kept.tensors()]
    with pytest.raises(NoRoom, match="rank 1"):
        kept.take(bank(1, 1))
    assert all(map(torch.equal, kept.tensors(), held)) and {*kept.index} == {"steer", "a"}
    kept.take(bank(1, 2))
    assert not all(map(torch.equal, kept.tensors(), held))


@pytest.mark.parametrize("make", [ablation, kif])
def test_it_acts_to_the_end_on_rows_on_which_it_fires(make: Any) -> None:
    model = tiny_model()
    stack = (AblationGuards if make is ablation else KifGuards)([make("g", rank=1)])
    engine = TransformersEngine(model, HiddenBank([stack]), capacity=2)
    prompts = [prompt(9, 1), prompt(6, 2)]
    fires, silent = RowGuard("g", -1e6, 3.0), RowGuard("g", 1e6, 3.0)
    rows, readings = serve(
        engine, [start(prompts[0], [fires]), start(prompts[1], [silent])], tokens=20
    )
    assert ids(rows)[1] == generated(model, prompts[1], 20)
    assert readings[0]["g"].position == 0 and not readings[1]["g"].fired
    engine.close()
    # the last token that is read, long behind any schedule, is changed too
    tokens = [*prompts[0], *ids(rows)[0]]
    guard = make("g", rank=1)
    seen = changed(model, stack, guard, tokens, len(prompts[0]) - 1)
    assert ids(rows)[0][1:] == seen[len(prompts[0]) : -1]


def changed(
    model: Any, stack: Any, guard: AblationGuard, tokens: list[int], first: int
) -> list[int]:
    """The tokens that follow each of `tokens`, which are acted on from position `first` on."""

    def hook(layer: int) -> Any:
        def act(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            at = hidden[0, first:]
            columns = torch.zeros(len(at), dtype=torch.long)
            hidden[0, first:] = at + stack.act(
                layer, at, columns, columns, torch.full((len(at),), 3.0)
            )
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return act

    handles = [model.model.layers[i].register_forward_hook(hook(i)) for i in guard.act_layers]
    with torch.no_grad():
        following = model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()
    for handle in handles:
        handle.remove()
    return following


def artifact_of(guard: AblationGuard) -> FittedGuard:
    tensors = {"gates": guard.gates.numpy(), "directions": guard.directions.numpy()}
    settings: dict[str, Any] = {
        "sense_layers": [*guard.sense_layers],
        "act_layers": [*guard.act_layers],
        "pool": guard.pool,
    }
    if isinstance(guard, KifGuard):
        tensors["levels"] = guard.levels.numpy()
        settings |= {"bias": guard.bias, "slope": guard.slope, "middle": guard.middle}
    return FittedGuard(guard.name, tensors, settings)


@pytest.mark.parametrize("make", [ablation, kif])
def test_artifacts_are_read_as_they_were_written(make: Any) -> None:
    fitted = artifact_of(make("g"))
    method = method_named("ablation" if make is ablation else "kif")
    loaded = method.stacked([fitted])
    direct = (AblationGuards if make is ablation else KifGuards)([make("g")])
    h = states(3)
    assert torch.equal(loaded.sense(1, h), direct.sense(1, h))
    assert torch.equal(
        acted(loaded, 2, h, [0] * 3, [1.0] * 3), acted(direct, 2, h, [0] * 3, [1.0] * 3)
    )
    assert loaded.placements[0].steps is None


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("directions", np.ones((2, 2, WIDTH)), "must be orthonormal"),
        ("directions", np.ones((1, 2, WIDTH)), r"must be \[act layers, rank, width\]"),
        ("directions", np.ones((2, 2, WIDTH - 1)), "where the gates' width is"),
        ("gates", np.ones((2, WIDTH)), r"gates must be \[sense layers, width\]"),
        ("levels", np.ones((1, 2)), r"levels must be \[act layers, 2\]"),
        ("levels", np.zeros((2, 2)), "deviations of levels must be over 0"),
    ],
)
def test_wrong_tensors_are_refused(key: str, value: Any, fault: str) -> None:
    fitted = artifact_of(kif("g"))
    tensors = {**fitted.tensors, key: value.astype("f4")}
    with pytest.raises(ValueError, match=fault):
        method_named("kif").stacked([FittedGuard("g", tensors, fitted.settings)])


def test_a_guard_must_decide_before_it_acts() -> None:
    with pytest.raises(ValueError, match="before its last sensing layer"):
        AblationGuards([ablation("g", act=(0, LAYERS - 1))])
