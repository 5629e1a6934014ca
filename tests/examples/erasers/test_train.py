"""The trainer of erasers on a tiny model: losses go where they say, runs go on where they ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from examples.erasers import natural_gradient, train
from examples.erasers.data import Answered, Batch, Data
from examples.erasers.differences import Differences
from examples.erasers.forwards import Forwards, divergence
from examples.erasers.losses import (
    bounded_forgetting,
    gradient_ascent,
    misdirection,
    negative_preference,
)
from steering.engines.transformers.adapters.weights import decoder_linears, read_adapter
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.steering.tiny import prompt, tiny_model


def data() -> Data:
    rows = [Answered(tuple(prompt(4 + i, i)), tuple(prompt(3, 50 + i))) for i in range(12)]
    return Data(rows[:6], rows[6:])


def eraser(loss: Any, rank: int | None, **more: Any) -> train.Eraser:
    names = ("q_proj", "down_proj") if rank else ("down_proj",)
    settings = {"steps": 6, "rate": 0.02, "rows": 4} | more
    return train.Eraser(loss, names, range(1, 3), rank, **settings)


def trained(what: train.Eraser, checkpoint: Path) -> tuple[Any, Differences]:
    model = tiny_model()
    differences = Differences(model, what.names, what.layers, what.rank)
    train._run(what, Forwards(model, differences), differences, data(), checkpoint)
    return model, differences


def likelihood(model: Any, differences: Differences, rows: list[Answered]) -> float:
    _, chosen = Forwards(model, differences).log_probabilities(Batch.of(rows))
    return float(chosen.detach().mean())


@pytest.mark.parametrize("loss", [gradient_ascent.loss, negative_preference.loss])
def test_answers_to_forget_become_unlikely_and_others_stay_near(tmp_path: Path, loss: Any) -> None:
    model, differences = trained(eraser(loss, 2), tmp_path / "c.safetensors")
    forget = [*data().forget]
    with differences.off():
        bare = likelihood(model, differences, forget)
    assert likelihood(model, differences, forget) < bare - 0.5
    alone = eraser(lambda m, f, r: (m.log_probabilities(f)[1].mean(), 0.0), 2)
    other, without = trained(alone, tmp_path / "alone.safetensors")
    kept = Batch.of([*data().retain])
    held = float(divergence(Forwards(model, differences), kept))
    assert held < float(divergence(Forwards(other, without), kept))


def test_misdirected_states_leave_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misdirection, "LAYER", 2)
    model, differences = trained(eraser(misdirection.loss, None), tmp_path / "c.safetensors")
    run = Forwards(model, differences)

    def moved(rows: Any) -> float:
        batch = Batch.of([*rows])
        return float((run.states(batch, 2) - run.bare_states(batch, 2)).norm(dim=-1).mean())

    assert moved(data().forget) > 1.5 * moved(data().retain) > 0.0


def test_a_natural_step_goes_uphill_as_far_as_it_says() -> None:
    model = tiny_model()
    differences = Differences(model, ("down_proj",), range(0, 4), None)
    run, rows = Forwards(model, differences), data()
    forget, retain = Batch.of([*rows.forget]), Batch.of([*rows.retain])
    bare = likelihood(model, differences, [*rows.forget])
    figure = natural_gradient.step(run, differences, [forget], [retain], reach=0.01)
    assert figure == pytest.approx(-bare, abs=1e-4)
    assert likelihood(model, differences, [*rows.forget]) < bare
    assert float(divergence(run, retain).detach()) == pytest.approx(0.01, rel=0.1)


def test_padding_is_no_part_of_the_metric() -> None:
    model = tiny_model()
    differences = Differences(model, ("down_proj",), range(0, 4), None)
    run, rows = Forwards(model, differences), [*data().retain]

    def sums(batches: list[Batch]) -> natural_gradient.Factors:
        factors = natural_gradient.Factors(differences.linears)
        for batch in batches:
            factors.begin(batch)
            every, _ = run.log_probabilities(batch)
            every.square().sum().backward()
        factors.remove()
        return factors

    padded, alone = sums([Batch.of(rows)]), sums([Batch.of([row]) for row in rows])
    assert padded.tokens == alone.tokens == sum(len(row.prompt) + 3 for row in rows)
    for name in ("inputs", "outputs"):
        for one, other in zip(getattr(padded, name), getattr(alone, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_run_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "EVERY", 2)
    what = eraser(negative_preference.loss, 2)
    _, whole = trained(what, tmp_path / "whole.safetensors")
    half = eraser(negative_preference.loss, 2, steps=4)
    trained(half, tmp_path / "parts.safetensors")
    _, parts = trained(what, tmp_path / "parts.safetensors")
    for path, each in whole.by_path.items():
        assert torch.allclose(each.delta, parts.by_path[path].delta, atol=1e-6)
        assert each.delta.abs().max() > 1e-4


def test_adapters_are_read_as_peft_saves_them(tmp_path: Path) -> None:
    model, differences = trained(eraser(gradient_ascent.loss, 2), tmp_path / "c.safetensors")
    differences.save(tmp_path / "lora", "tiny")
    factors = read_adapter(tmp_path / "lora", decoder_linears(tiny_model()), torch.float32)
    assert factors.keys() == differences.by_path.keys()
    for path, each in differences.by_path.items():
        product = factors[path].write @ factors[path].read
        assert torch.allclose(product, each.delta, atol=1e-6)


def test_whole_differences_are_written_as_changed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misdirection, "LAYER", 2)
    model, differences = trained(eraser(misdirection.loss, None), tmp_path / "c.safetensors")
    differences.save(tmp_path / "whole", "tiny")
    weights, bare = load_file(tmp_path / "whole" / "model.safetensors"), tiny_model().state_dict()
    assert {*weights} == {f"{path}.weight" for path in differences.by_path}
    for name, weight in weights.items():
        delta = differences.by_path[name.removesuffix(".weight")].delta
        assert torch.allclose(weight - bare[name], delta, atol=1e-6) and delta.any()


def test_the_bounded_loss_is_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_forgetting, "BOUND", 9.0)
    model = tiny_model()
    differences = Differences(model, ("q_proj", "down_proj"), range(1, 3), 2)
    run = Forwards(model, differences)
    with torch.no_grad():
        for each in differences.by_path.values():
            each.write.normal_(std=0.1)
    forget, retain = Batch.of([*data().forget]), Batch.of([*data().retain])

    def loss() -> float:
        return float(bounded_forgetting.loss(run, forget, retain)[0].detach())

    nll = -likelihood(model, differences, [*data().forget])
    far, near = (float(divergence(run, batch).detach()) for batch in (forget, retain))
    assert 0.0 < nll < 9.0 and 0.0 < far < bounded_forgetting.FAR
    whole = (
        bounded_forgetting.BETA * (9.0 - nll)
        + bounded_forgetting.GAMMA * (bounded_forgetting.FAR - far)
        + near
    )
    assert loss() == pytest.approx(whole, rel=1e-4)
    assert bounded_forgetting.loss(run, forget, retain)[1] == pytest.approx(nll, abs=1e-4)
    # behind a bound nothing is pushed any further
    monkeypatch.setattr(bounded_forgetting, "BOUND", nll - 0.1)
    assert loss() == pytest.approx(
        bounded_forgetting.GAMMA * (bounded_forgetting.FAR - far) + near, rel=1e-3
    )
    monkeypatch.setattr(bounded_forgetting, "FAR", far - 0.01)
    assert loss() == pytest.approx(near, rel=1e-3)


def test_a_penalty_leaves_the_layers_that_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_forgetting, "BOUND", 12.0)

    def run(penalty: float, **more: Any) -> tuple[Differences, float]:
        what = eraser(bounded_forgetting.loss, 2, **more, steps=12, rate=0.5, penalty=penalty)
        model, differences = trained(what, tmp_path / f"{penalty}{more}.safetensors")
        return differences, likelihood(model, differences, [*data().forget])

    none, least = run(100.0)
    assert none.silent() == [1, 2]
    free, most = run(1e-6)
    assert free.silent() == [] and most < least - 0.3


def test_the_last_steps_with_a_penalty_become_shorter() -> None:
    with_penalty = eraser(bounded_forgetting.loss, 2, steps=20, rate=5.0, penalty=0.1)
    rates = [with_penalty.rate_at(step) for step in range(20)]
    assert rates[:15] == [5.0] * 15 and rates[19] == pytest.approx(5.0 / 6.0)
    assert rates[14:] == sorted(rates[14:], reverse=True) and min(rates) > 0.0
    without = eraser(gradient_ascent.loss, 2, steps=20, rate=5.0)
    assert without.rate_at(19) == 5.0


def test_shrinking_is_the_proximal_step_of_the_norm() -> None:
    differences = Differences(tiny_model(), ("q_proj", "down_proj"), range(0, 3), 2)
    with torch.no_grad():
        for path, each in differences.by_path.items():
            each.write.normal_(std=1e-3 if ".1." in path else 2.0)
            each.read.mul_(1e-3 if ".1." in path else 1.0)

    def vectors() -> dict[int, torch.Tensor]:
        return {
            layer: torch.cat([p.detach().flatten() for each in group for p in each.parameters()])
            for layer, group in differences.by_layer().items()
        }

    before = vectors()
    differences.shrink(0.5)
    for layer, after in vectors().items():
        length = float(before[layer].norm())
        expected = before[layer] * max(0.0, 1.0 - 0.5 / length)
        torch.testing.assert_close(after, expected)
    assert differences.silent() == [1] and not vectors()[1].any()


def test_decoder_layers_that_are_zero_are_left_out(tmp_path: Path) -> None:
    model = tiny_model()
    differences = Differences(model, ("q_proj", "down_proj"), range(0, 4), 2)
    with torch.no_grad():
        for path, each in differences.by_path.items():
            each.write.normal_(std=0.0 if ".1." in path else 0.1)
    assert differences.silent() == [1]
    differences.save(tmp_path / "lora", "tiny")
    factors = read_adapter(tmp_path / "lora", decoder_linears(tiny_model()), torch.float32)
    assert {path.split(".")[2] for path in factors} == {"0", "2", "3"}
    # and PEFT reads it as it is meant
    tuned = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "lora"))
    with torch.no_grad():
        ids = torch.tensor([prompt(9, 3)])
        torch.testing.assert_close(tuned(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_second_task_begins_with_the_model_that_the_first_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    save_tokenizer(tmp_path / "model")
    tiny_model().save_pretrained(tmp_path / "model")
    rows = data()
    kept = {
        kind: [(row.prompt, row.answer) for row in getattr(rows, kind)]
        for kind in ("forget", "retain")
    }
    (tmp_path / "answers.json").write_text(json.dumps(kept))
    begun: list[float] = []

    def loss(model: Any, forget: Batch, retain: Batch) -> tuple[torch.Tensor, float]:
        _, chosen = model.log_probabilities(Batch.of([*rows.forget]))
        begun.append(float(chosen.detach().mean()))
        return chosen.mean(), 0.0

    monkeypatch.setitem(train.ERASERS, "npo", eraser(loss, 2, steps=3))
    source, first, second = str(tmp_path / "model"), tmp_path, tmp_path / "second"
    train.train("npo", source, tmp_path, first)
    second.mkdir()
    (second / "answers.json").write_text(json.dumps(kept))
    train.train("npo", source, tmp_path, second, after=first / "npo")
    tuned = PeftModel.from_pretrained(tiny_model(), str(first / "npo")).merge_and_unload()
    bare = Differences(tuned, ("down_proj",), range(0), None)
    assert begun[3] == pytest.approx(likelihood(tuned, bare, [*rows.forget]), abs=1e-4)
    assert begun[3] < begun[0] - 0.1


def test_the_figure_ends_a_run(tmp_path: Path) -> None:
    what = eraser(gradient_ascent.loss, 2, until=0.0)
    _, differences = trained(what, tmp_path / "c.safetensors")
    _, again = trained(what, tmp_path / "c.safetensors")
    for path, each in differences.by_path.items():
        assert torch.equal(each.delta, again.by_path[path].delta)
