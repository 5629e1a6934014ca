"""A row with an adapter answers as the merged model does; its neighbours keep their bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from steering.engines.transformers import lanes
from steering.engines.transformers.adapters.seam import AdapterSeam
from steering.engines.transformers.adapters.settings import UnfitAdapter
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.adapters import merged, save_adapter
from tests.steering.engines.driver import generated, hooks_on, ids, serve, start, weights_hash
from tests.steering.tiny import prompt, random_guard, tiny_model

LOGPROBS = RowSampling(top_logprobs=5)
PROMPTS = [prompt(n, seed) for seed, n in enumerate((6, 17, 11, 3))]
LONG = prompt(61, 5)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BANK = bank_of([random_guard("a")])
MIXED = ["one", None, "two", "one"]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model().double()


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of different layers and ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": save_adapter(folder / "one", model),
        "two": save_adapter(folder / "two", model, ALL, rank=7, alpha=14, seed=1),
    }


@pytest.fixture(scope="module")
def references(model: Any, folders: dict[str, Path]) -> dict[str | None, Any]:
    return {None: model} | {name: merged(model, folder) for name, folder in folders.items()}


@pytest.fixture
def engine(model: Any, folders: dict[str, Path]) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model, BANK, capacity=4, adapters=AdapterSeam(model, folders))
    yield engine
    engine.close()


def carrying(tokens: list[int], adapter: str | None, *guards: RowGuard) -> RowStart:
    return replace(start(tokens, guards, LOGPROBS), adapter=adapter)


def starts(adapters: list[str | None]) -> list[RowStart]:
    return [carrying(p, name) for p, name in zip(PROMPTS, adapters, strict=True)]


def content(row: list[RowToken]) -> list[tuple[Any, ...]]:
    return [(token.token, token.logprob, token.top) for token in row]


def test_rows_of_a_mixed_batch_answer_as_merged_models(
    engine: TransformersEngine, model: Any, references: dict[str | None, Any]
) -> None:
    before = weights_hash(model)
    rows, _ = serve(engine, starts(MIXED))
    for row, tokens, name in zip(rows, PROMPTS, MIXED, strict=True):
        assert ids([row]) == [generated(references[name], tokens, 8)]
        (logits,) = references[name](torch.tensor([tokens])).logits[:, -1]
        logprobs = logits.float().log_softmax(-1)
        assert [p for _, p in row[0].top] == pytest.approx(
            logprobs.topk(5).values.tolist(), abs=1e-5
        )
    # the adapters change answers, else all of this shows nothing
    assert len({tuple(generated(each, PROMPTS[0], 8)) for each in references.values()}) == 3
    assert weights_hash(model) == before and hooks_on(model) == len(BANK.layers)


def test_rows_without_an_adapter_keep_their_bits(engine: TransformersEngine, model: Any) -> None:
    plain = TransformersEngine(model, BANK, capacity=4)
    bare, _ = serve(plain, starts([None] * 4))
    plain.close()
    engine.reset()
    assert [*map(content, serve(engine, starts([None] * 4))[0])] == [*map(content, bare)]
    engine.reset()
    beside, _ = serve(engine, starts(["two", None, "one", None]))
    for row in (1, 3):
        assert content(beside[row]) == content(bare[row])
    assert ids([beside[0]]) != ids([bare[0]])


def test_a_forward_without_an_adapter_has_no_hook(engine: TransformersEngine, model: Any) -> None:
    seen = []
    linear = model.model.layers[0].self_attn.q_proj
    handle = model.register_forward_pre_hook(lambda *_: seen.append(len(linear._forward_hooks)))
    try:
        serve(engine, starts([None] * 4), tokens=2)
        assert seen == [0, 0]
        serve(engine, starts(["one", None, None, None]), tokens=[1, 3, 3, 3])
        # the prefill alone: the one row with an adapter has left then
        assert seen[2:] == [1, 0, 0]
    finally:
        handle.remove()


def test_rows_that_move_and_join_keep_their_adapters(
    engine: TransformersEngine, references: dict[str | None, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "SHORTEST", 16)
    counts = [3, 20, 9, 14]
    rows, _ = serve(engine, starts(MIXED), joins=[0, 0, 2, 5], tokens=counts)
    for row, tokens, name, count in zip(rows, PROMPTS, MIXED, counts, strict=True):
        assert ids([row]) == [generated(references[name], tokens, count)]
    # a place that a row with an adapter had is free of it
    assert ids(serve(engine, starts([None] * 4))[0]) == [
        generated(references[None], tokens, 8) for tokens in PROMPTS
    ]


def test_a_long_prompt_is_read_in_parts_with_its_adapter(
    engine: TransformersEngine, references: dict[str | None, Any]
) -> None:
    engine.prefill([carrying(PROMPTS[0], None), carrying(PROMPTS[1], "one")])
    engine.begin(carrying(LONG, "two"))
    token, answers = None, [[], []]
    while token is None:
        token = engine.read(16)
        for answer, other in zip(answers, engine.decode(), strict=False):
            answer.append(other.token)
    long = [token.token, *(engine.decode()[2].token for _ in range(7))]
    assert long[:1] == generated(references["two"], LONG, 1)
    assert engine.rows == 3
    for answer, tokens, name in zip(answers, PROMPTS, (None, "one"), strict=False):
        assert answer == generated(references[name], tokens, 5)[1:]


def test_guards_read_and_steer_the_adapted_states(
    engine: TransformersEngine, references: dict[str | None, Any]
) -> None:
    watch = RowGuard("a", threshold=1e6, strength=10.0, recheck=1e6)
    fires = RowGuard("a", threshold=-1e6, strength=10.0)
    reference = TransformersEngine(references["two"], BANK, capacity=4)
    for guard in (watch, fires):
        engine.reset()
        reference.reset()
        rows, readings = serve(engine, [carrying(PROMPTS[1], "two", guard)])
        wanted, expected = serve(reference, [carrying(PROMPTS[1], None, guard)])
        assert ids(rows) == ids(wanted)
        assert readings[0]["a"].score == pytest.approx(expected[0]["a"].score, abs=1e-4)
    reference.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_formats_are_near_the_merged_weights(folders: dict[str, Path], dtype: Any) -> None:
    model = tiny_model().to(dtype)
    seam = AdapterSeam(model, folders)
    tokens = torch.tensor([prompt(9, 1)] * 2)
    bare = model(tokens).logits
    with seam.acting([None, "two"]):
        both = model(tokens).logits
    wanted = merged(model.float(), folders["two"])(tokens).logits[1]
    assert both.dtype == dtype and torch.equal(both[0], bare[0])
    assert F.cosine_similarity(both[1].float().ravel(), wanted.ravel(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("gemma3_text", ALL),
        ("phi3", ("qkv_proj", "gate_up_proj")),
        ("gptj", ("q_proj", "fc_in", "fc_out")),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, targets: tuple[str, ...]) -> None:
    model = tiny_model(architecture).double()
    folder = save_adapter(tmp_path / "a", model, targets, size=0.15)
    engine = TransformersEngine(
        model, HiddenBank([], "cpu"), capacity=4, adapters=AdapterSeam(model, {"a": folder})
    )
    rows, _ = serve(engine, starts(["a", None, "a", None]))
    for row, tokens, each in zip(rows, PROMPTS, [merged(model, folder), model] * 2, strict=True):
        assert ids([row]) == [generated(each, tokens, 8)]


def test_an_unknown_adapter_is_refused_before_a_row_changes(engine: TransformersEngine) -> None:
    for at in (engine, TransformersEngine(tiny_model(), BANK, capacity=2)):
        with pytest.raises(ValueError, match="no adapter 'three'"):
            at.prefill([carrying(PROMPTS[0], "three")])
        assert at.rows == 0


def test_layers_that_see_tokens_alone_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    gate = model.model.layers[1].mlp.gate_proj
    inside = gate.forward
    # as a router does: rows and tokens are one axis
    gate.forward = lambda x: inside(x)
    mlp = model.model.layers[1].mlp
    whole = mlp.forward
    mlp.forward = lambda x: whole(x.flatten(0, 1)).view_as(x)
    folder = save_adapter(tmp_path / "a", model, ("gate_proj",))
    with pytest.raises(UnfitAdapter, match="do not see a batch by rows"):
        AdapterSeam(model, {"a": folder})
