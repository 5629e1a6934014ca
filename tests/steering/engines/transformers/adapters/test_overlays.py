"""A row on which an overlay's guard fires answers as a model with the changed weights does; all
others keep their bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.transformers.adapters.products import Carried, LowRankProducts
from steering.engines.transformers.adapters.seam import AdapterSeam
from steering.engines.transformers.adapters.settings import LoraSettings
from steering.engines.transformers.adapters.weights import decoder_linears, read_adapter
from steering.engines.transformers.continuations import Continued, continuation_losses
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.hidden.overlays import LinearOverlay, LowRank
from steering.hidden.rows import RowGuard
from steering.methods.language_overlay import LanguageOverlay, LanguageOverlays
from steering.methods.steer import SteerGuards
from steering.prompt import Prompt
from tests.steering.adapters import merged, save_adapter
from tests.steering.engines.driver import generated, hooks_on, ids, serve, start, weights_hash
from tests.steering.tiny import WIDTH, prompt, random_guard, tiny_model

LOGPROBS = RowSampling(top_logprobs=5)
PROMPTS = [prompt(n, seed) for seed, n in enumerate((6, 17, 11, 3))]
LONG = prompt(61, 5)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model().double()


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("overlays")
    return {
        "one": save_adapter(folder / "one", model),
        "two": save_adapter(folder / "two", model, ALL, rank=7, alpha=14, seed=1),
    }


def overlay(model: Any, folder: Path, *, rereads: bool = True) -> LinearOverlay:
    factors = read_adapter(folder, decoder_linears(model), torch.float32)
    assert LoraSettings.read(folder).rank in (4, 7)
    return LinearOverlay(factors, rereads)


def bank(model: Any, folders: Mapping[str, Path], *, rereads: bool = True) -> HiddenBank:
    """Both overlays, and a steering guard whose columns lie before theirs."""
    generator = torch.Generator().manual_seed(7)
    gates = torch.randn(1, WIDTH, generator=generator)
    guards = [
        LanguageOverlay(name, (1,), gates, 2, overlay(model, folder, rereads=rereads))
        for name, folder in folders.items()
    ]
    return HiddenBank([SteerGuards([random_guard("steer")]), LanguageOverlays(guards)])


def fires(name: str, strength: float = 1.0) -> RowGuard:
    return RowGuard(name, threshold=-1e6, strength=strength)


def silent(name: str) -> RowGuard:
    return RowGuard(name, threshold=1e6, strength=1.0)


def carrying(tokens: list[int], *guards: RowGuard) -> RowStart:
    return start(tokens, guards, LOGPROBS)


def content(row: list[RowToken]) -> list[tuple[Any, ...]]:
    return [(token.token, token.logprob, token.top) for token in row]


def test_a_fired_row_answers_as_the_changed_model_and_silent_ones_as_the_bare_one(
    model: Any, folders: Mapping[str, Path]
) -> None:
    before = weights_hash(model)
    engine = TransformersEngine(model, HiddenBank(), capacity=4)
    bare, _ = serve(engine, [carrying(p) for p in PROMPTS])
    engine.use(bank(model, folders))
    guards = [(fires("one"),), (silent("one"), silent("two")), (fires("two"), silent("one")), ()]
    starts = [carrying(p, *g) for p, g in zip(PROMPTS, guards, strict=True)]
    rows, readings = serve(engine, starts)
    for place, name in ((0, "one"), (2, "two")):
        changed = merged(model, folders[name])
        assert ids([rows[place]]) == [generated(changed, PROMPTS[place], 8)]
        assert ids([rows[place]]) != ids([bare[place]])
        assert readings[place][name].position == 0
    for place in (1, 3):
        assert content(rows[place]) == content(bare[place])
        assert not any(reading.fired for reading in readings[place].values())
    assert weights_hash(model) == before
    engine.close()
    assert hooks_on(model) == 0


def test_overlays_of_one_row_add_up_and_go_with_its_adapter(
    model: Any, folders: Mapping[str, Path]
) -> None:
    both = merged(merged(model, folders["one"]), folders["two"])
    engine = TransformersEngine(
        model,
        bank(model, folders),
        capacity=4,
        adapters=AdapterSeam(model, {"lora": folders["one"]}),
    )
    rows, _ = serve(engine, [carrying(PROMPTS[1], fires("one"), fires("two"))])
    assert ids(rows) == [generated(both, PROMPTS[1], 8)]
    engine.reset()
    adapted = RowStart(Prompt(tuple(PROMPTS[1])), [fires("two")], LOGPROBS, adapter="lora")
    assert ids(serve(engine, [adapted])[0]) == ids(rows)
    engine.reset()
    half = merged(model, folders["two"], scale=1.0)
    rows, _ = serve(engine, [carrying(PROMPTS[1], fires("two", strength=0.5))])
    assert ids(rows) == [generated(half, PROMPTS[1], 8)]


def test_the_prompt_is_sensed_by_the_bare_model_and_steered_under_the_overlay(
    model: Any, folders: Mapping[str, Path]
) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=4)
    watch = RowGuard("two", threshold=-1e6, strength=1.0, acts=False)
    _, alone = serve(engine, [carrying(PROMPTS[1], watch, silent("steer"))])
    engine.reset()
    _, beside = serve(engine, [carrying(PROMPTS[1], fires("two"), silent("steer"))])
    assert {n: r.score for n, r in alone[0].items()} == {n: r.score for n, r in beside[0].items()}
    engine.reset()
    rows, _ = serve(engine, [carrying(PROMPTS[1], fires("two"), fires("steer"))])
    changed = TransformersEngine(merged(model, folders["two"]), bank(model, folders), capacity=4)
    wanted, _ = serve(changed, [carrying(PROMPTS[1], fires("steer"))])
    assert ids(rows) == ids(wanted)


def test_a_guard_that_only_observes_changes_nothing(
    model: Any, folders: Mapping[str, Path]
) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=4)
    watch = RowGuard("two", threshold=-1e6, strength=1.0, acts=False)
    rows, readings = serve(engine, [carrying(PROMPTS[1], watch), carrying(PROMPTS[2])])
    assert readings[0]["two"].fired
    assert ids(rows) == [generated(model, tokens, 8) for tokens in PROMPTS[1:3]]


def test_rows_that_join_move_and_leave_keep_their_overlays(
    model: Any, folders: Mapping[str, Path]
) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=4)
    names = ["one", None, "two", "one"]
    counts = [3, 20, 9, 14]
    starts = [carrying(p, *([fires(n)] if n else [])) for p, n in zip(PROMPTS, names, strict=True)]
    rows, _ = serve(engine, starts, joins=[0, 0, 2, 5], tokens=counts)
    references = {name: merged(model, folder) for name, folder in folders.items()}
    for row, tokens, name, count in zip(rows, PROMPTS, names, counts, strict=True):
        assert ids([row]) == [generated(references.get(name or "", model), tokens, count)]
    # a place that a row with an overlay had is free of it
    assert ids(serve(engine, [carrying(p) for p in PROMPTS])[0]) == [
        generated(model, tokens, 8) for tokens in PROMPTS
    ]


@pytest.mark.parametrize("most", [16, 64])
def test_a_long_prompt_is_read_again_in_parts(
    model: Any, folders: Mapping[str, Path], most: int
) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=4)
    engine.prefill([carrying(PROMPTS[0])])
    engine.begin(carrying(LONG, fires("two"), fires("steer")))
    token, parts, other = None, 0, []
    while token is None:
        other.append(engine.decode()[0].token)
        token, parts = engine.read(most), parts + 1
    assert parts == 2 * -(-len(LONG) // most)
    answer = [token.token, *(engine.decode()[1].token for _ in range(5))]
    changed = TransformersEngine(merged(model, folders["two"]), bank(model, folders), capacity=4)
    wanted, _ = serve(changed, [carrying(LONG, fires("steer"))], tokens=6)
    assert answer == ids(wanted)[0]
    assert other == generated(model, PROMPTS[0], 1 + len(other))[1:]


@pytest.mark.parametrize("parts", [False, True])
def test_without_rereading_the_keys_of_the_prompt_stay(
    model: Any, folders: Mapping[str, Path], parts: bool
) -> None:
    engine = TransformersEngine(model, bank(model, folders, rereads=False), capacity=4)
    tokens, changed = LONG, merged(model, folders["two"])
    if parts:
        engine.begin(carrying(tokens, fires("two")))
        token = None
        while token is None:
            token = engine.read(16)
    else:
        (_, token) = engine.prefill([carrying(PROMPTS[0]), carrying(tokens, fires("two"))])
    cache = model(torch.tensor([tokens[:-1]]), use_cache=True).past_key_values
    (last,) = changed(torch.tensor([tokens[-1:]]), past_key_values=cache).logits[:, -1]
    logprobs = last.float().log_softmax(-1).topk(5)
    assert [t for t, _ in token.top] == logprobs.indices.tolist()
    assert [p for _, p in token.top] == pytest.approx(logprobs.values.tolist(), abs=1e-5)


def test_a_bank_is_replaced_while_rows_run(model: Any, folders: Mapping[str, Path]) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=4)
    first = engine.prefill([carrying(PROMPTS[1], fires("two"))])
    engine.rebank(bank(model, dict(reversed(folders.items()))))
    answer = [first[0].token, *(engine.decode()[0].token for _ in range(5))]
    assert answer == generated(merged(model, folders["two"]), PROMPTS[1], 6)


def test_likelihoods_of_given_answers_refuse_an_overlay(
    model: Any, folders: Mapping[str, Path]
) -> None:
    item = Continued(Prompt(tuple(PROMPTS[0])), [[5, 6]])
    with pytest.raises(ValueError, match="one overlays linear layers"):
        continuation_losses(
            model, [item], end_tokens={2}, bank=bank(model, folders), guards=[fires("one")]
        )


def test_a_bank_that_does_not_fit_changes_nothing(model: Any, folders: Mapping[str, Path]) -> None:
    engine = TransformersEngine(model, bank(model, folders), capacity=2)
    engine.prefill([carrying(PROMPTS[1], fires("two"))])
    wrong = LinearOverlay(
        {"model.layers.9.mlp.up_proj": LowRank(torch.ones(1, 32), torch.ones(64, 1))}
    )
    guard = LanguageOverlay("two", (1,), torch.ones(1, WIDTH), 1, wrong)
    with pytest.raises(ValueError, match="no linear layer"):
        engine.rebank(HiddenBank([LanguageOverlays([guard])]))
    answer = [engine.decode()[0].token for _ in range(5)]
    assert answer == generated(merged(model, folders["two"]), PROMPTS[1], 6)[1:]


def looped(
    linear: Tensor, states: Tensor, carried: list[list[Carried]], overlays: Mapping[str, LowRank]
) -> Tensor:
    """The naive way: row by row, overlay by overlay."""
    rows = []
    for x, row in zip(states, carried, strict=True):
        y = x @ linear.T
        for each in row:
            factors = overlays[each.name]
            y = y + each.scale * (x @ factors.read.T) @ factors.write.T
        rows.append(y)
    return torch.stack(rows)


def test_one_stacked_product_is_the_loop_over_rows_and_overlays() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(12, 9, bias=False).double()

    def factors(rank: int) -> LowRank:
        read = torch.randn(rank, 12, generator=generator, dtype=torch.float64)
        return LowRank(read, torch.randn(9, rank, generator=generator, dtype=torch.float64))

    overlays = {f"g{i}": factors(1 + i % 4) for i in range(64)}
    products = LowRankProducts(
        {"at": linear},
        {name: {"at": each} for name, each in overlays.items()},
        torch.device("cpu"),
        torch.float64,
    )
    carried = [[Carried(f"g{i}")] for i in range(64)] + [[]]
    carried[3] = [Carried("g5", 0.5), Carried("g9"), Carried("g3", -2.0)]
    states = torch.randn(65, 3, 12, generator=generator, dtype=torch.float64)
    with products.acting(carried):
        stacked = linear(states)
    with torch.no_grad():
        assert torch.allclose(stacked, looped(linear.weight, states, carried, overlays))
        assert torch.equal(stacked[-1], linear(states)[-1])


@pytest.mark.parametrize(
    ("path", "read", "write", "fault"),
    [
        ("model.layers.0.mlp.experts", (4, 32), (64, 4), "no linear layer"),
        ("model.layers.0.mlp.up_proj", (4, 31), (64, 4), "is 64 x 31, the layer is 64 x 32"),
        ("model.layers.0.mlp.up_proj", (33, 32), (64, 33), "rank 33, more than the layer's 32"),
    ],
)
def test_an_overlay_that_does_not_fit_is_refused(
    model: Any, path: str, read: tuple[int, int], write: tuple[int, int], fault: str
) -> None:
    factors = {path: LowRank(torch.ones(read), torch.ones(write))}
    guard = LanguageOverlay("g", (1,), torch.ones(1, WIDTH), 1, LinearOverlay(factors))
    with pytest.raises(ValueError, match=fault):
        TransformersEngine(model, HiddenBank([LanguageOverlays([guard])]), capacity=2)
