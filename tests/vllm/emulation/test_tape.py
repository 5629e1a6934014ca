"""A tape is right where a CUDA graph is, wrong where it is wrong, and tells what one cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vllm.emulation.tape import Graph, capture, capturing


@pytest.fixture(autouse=True)
def own_operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the tests run stands in an operator that captures look into."""
    monkeypatch.setattr(Graph, "inside", {"inference_guard_tests::run": _run})
    monkeypatch.setattr(Graph, "captured", {"full": [], "pieces": []})
    yield


_body: list[Callable[[Tensor], Any]] = []


def _run(states: Tensor) -> Tensor:
    made = _body[0](states)
    return made if isinstance(made, Tensor) and made is not states else states.clone()


_library = torch.library.Library("inference_guard_tests", "DEF")
_library.define("run(Tensor(a!) states) -> Tensor")
_library.impl("run", _run, "CPU")


def taped(
    body: Callable[[Tensor], Any], states: Tensor, persistent: tuple[Tensor, ...] = ()
) -> tuple[Graph, Tensor]:
    """A graph of `body`, and what it gives, which a replay writes anew."""
    _body[:] = [body]
    Graph.persistent = lambda: (states, *persistent)  # type: ignore[method-assign,assignment]
    graph = Graph()
    with torch.no_grad(), capture(graph, None, stream=None):
        made = torch.ops.inference_guard_tests.run(states)
    return graph, made


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4))
def test_a_replay_is_of_what_stands_in_the_buffers_by_then(values: list[float]) -> None:
    states, table = torch.ones(4), torch.zeros(8)

    def body(states: Tensor) -> Tensor:
        table[2:6].add_(states)
        return (table.view(2, 4).sum(0) * states).clamp(min=0)

    graph, made = taped(body, states, (table,))
    table.zero_()
    states.copy_(torch.tensor(values))
    graph.replay()
    graph.replay()
    expected_table = torch.zeros(8)
    for _ in range(2):
        expected_table[2:6] += states
        expected = (expected_table.view(2, 4).sum(0) * states).clamp(min=0)
    assert torch.equal(table, expected_table) and torch.equal(made, expected)
    assert (graph.syncs, graph.strangers) == ([], [])
    assert graph.replays == 2 and graph.looked_into == 1


def test_a_branch_of_python_is_what_it_was_at_capture() -> None:
    states, doubles = torch.ones(2), [False]
    graph, made = taped(lambda states: states * 2 if doubles[0] else states * 1, states)
    doubles[0] = True
    graph.replay()
    assert made.tolist() == [1.0, 1.0]


def test_a_buffer_that_has_moved_is_read_where_it_was() -> None:
    states, held = torch.ones(2), {"factor": torch.full((2,), 3.0)}
    graph, made = taped(lambda states: states * held["factor"], states, (held["factor"],))
    held["factor"] = torch.full((2,), 5.0)
    graph.replay()
    assert made.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "reads",
    [
        lambda states: states.sum().item(),
        lambda states: bool(states.any()),
        lambda states: float(states[0]),
        lambda states: states.tolist(),
        lambda states: states.cpu(),
        lambda states: states.numpy(),
        lambda states: states.nonzero(),
        lambda states: states[states > 0],
        lambda states: states.index_put_((states > 0,), torch.zeros((), device="cpu")),
        lambda states: torch.repeat_interleave(states.long()),
    ],
)
def test_a_read_of_the_host_is_told(reads: Callable[[Tensor], Any]) -> None:
    graph, _ = taped(lambda states: reads(states) and None, torch.ones(1))
    assert len(graph.syncs) >= 1 and "test_tape.py" in graph.syncs[0]


@pytest.mark.parametrize(
    "brings",
    [
        lambda states, outside: states + outside,
        lambda states, outside: outside.copy_(states),
        lambda states, outside: states + torch.tensor([3.0, 4.0]),
        lambda states, outside: states[torch.tensor([1, 0])],
    ],
)
def test_a_tensor_from_outside_is_told(brings: Callable[[Tensor, Tensor], Tensor]) -> None:
    outside = torch.zeros(2)
    graph, _ = taped(lambda states: brings(states, outside), torch.ones(2))
    assert len(graph.strangers) == 1 and "test_tape.py" in graph.strangers[0]


def test_what_is_made_within_is_no_stranger() -> None:
    def body(states: Tensor) -> Tensor:
        made = torch.arange(2) + torch.zeros(2, dtype=torch.long)
        return states.index_select(0, made).add_(torch.full((), 2.0)) + torch.empty(2).fill_(1)

    graph, made = taped(body, torch.ones(2))
    assert (graph.syncs, graph.strangers) == ([], []) and made.tolist() == [4.0, 4.0]


def test_another_shape_is_an_error() -> None:
    states = torch.ones(3)
    graph, _ = taped(lambda states: states[states > 0], states)
    states[0] = -1
    with pytest.raises(RuntimeError, match="captured with"):
        graph.replay()


def test_kernels_that_are_not_looked_into_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    states, factor = torch.ones(2), [1.0]
    monkeypatch.setattr(Graph, "inside", {})
    graph, made = taped(lambda states: states * factor[0], states)
    factor[0] = 7.0
    graph.replay()
    assert made.tolist() == [7.0, 7.0] and len(graph.tape) == 1


def test_whoever_asks_is_told_that_a_capture_runs() -> None:
    seen: list[bool] = []
    graph, _ = taped(lambda states: seen.append(capturing()), torch.ones(1))
    graph.replay()
    assert seen == [True] and not capturing()
    assert Graph.captured == {"full": [graph], "pieces": []}


def test_a_capture_that_fails_is_over() -> None:
    def fails(states: Tensor) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        taped(fails, torch.ones(1))
    assert not capturing() and Graph.captured == {"full": [], "pieces": []}
