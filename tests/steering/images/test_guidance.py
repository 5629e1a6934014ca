"""The guidance seam against a slow reference, with rows that are added, moved and removed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.guidance import Guidance, Predictions

SHAPE = (2, 3, 3)


class Leaky:
    """Guidance guards with a simple term: the weighted concept, plus half of the previous term."""

    def __init__(self, *names: str, first: float) -> None:
        self.names: Sequence[str] = names
        states = first + torch.arange(len(names))[:, None, None].expand(-1, 1, 2)
        masks = torch.ones(len(names), 1, dtype=torch.bool)
        self.per_guard = 1
        self.conditions: Conditioning | None = Conditioning({"text": states}, {"text": masks})

    def sense(self, text: Conditioning) -> Tensor:
        raise NotImplementedError

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        raise NotImplementedError

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        weight = at.strength + at.guard + at.progress + at.scale
        term = weight.view(shape) * at.concept + 0.5 * at.memory
        return term, term


class SlowRow:
    """One row of the reference: its pairs, each with its memory."""

    def __init__(self, guards: Sequence[RowGuard]) -> None:
        self.guards = guards
        self.memory = [torch.zeros(SHAPE) for _ in guards]

    def guided(
        self,
        column: dict[str, int],
        u: Tensor,
        c: Tensor,
        concepts: list[Tensor],
        s: float,
        p: float,
    ) -> Tensor:
        total = torch.zeros(SHAPE)
        for i, guard in enumerate(self.guards):
            weight = guard.strength + column[guard.name] + p + s
            self.memory[i] = weight * concepts[i] + 0.5 * self.memory[i]
            total = total + self.memory[i]
        return u + s * (c - u - total)


def guards(*names: str) -> list[RowGuard]:
    return [RowGuard(name, 0.0, 0.5 + len(name)) for name in names]


def seam() -> Guidance:
    return Guidance([Leaky("a", "bb", first=0.0), Leaky("ccc", first=9.0)])


COLUMN = {"a": 0, "bb": 1, "ccc": 0}
CONCEPT = {"a": 0.0, "bb": 1.0, "ccc": 9.0}


def combined(
    guidance: Guidance, u: Tensor, c: Tensor, extra: Tensor, scale: Tensor, progress: Tensor
) -> Tensor:
    return guidance.combine(
        u, c, extra, latents=u, timestep=progress, scale=scale, progress=progress
    )


def check(guidance: Guidance, slow: list[SlowRow], generator: torch.Generator) -> None:
    """Take one step of both, and compare them."""
    count = len(slow)
    u, c = (torch.randn(count, *SHAPE, generator=generator) for _ in range(2))
    scale, progress = (torch.rand(count, generator=generator) + 1.5 for _ in range(2))
    concept_of: dict[tuple[int, float], Tensor] = {}
    concept = torch.randn(len(guidance.extra_rows), *SHAPE, generator=generator)
    if len(guidance):
        values = guidance.text.states["text"][:, 0, 0].tolist()
        rows = guidance.extra_rows.tolist()
        for pair, (row, value) in enumerate(zip(rows, values, strict=True)):
            concept_of[row, value] = concept[pair]
    out = combined(guidance, u, c, concept, scale, progress)
    for row, reference in enumerate(slow):
        concepts = [concept_of[row, CONCEPT[guard.name]] for guard in reference.guards]
        s, p = float(scale[row]), float(progress[row])
        expected = reference.guided(COLUMN, u[row], c[row], concepts, s, p)
        torch.testing.assert_close(out[row], expected)
        if not reference.guards:
            assert torch.equal(out[row], u[row] + scale[row] * (c[row] - u[row]))


def test_rows_that_are_added_moved_and_removed_keep_their_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    guidance = seam()
    carried = [guards("a", "ccc"), guards(), guards("bb"), guards("ccc")]
    slow = []
    for row, row_guards in enumerate(carried):
        guidance.add(row, row_guards)
        slow.append(SlowRow(row_guards))
        check(guidance, slow, generator)
    guidance.remove(0)
    guidance.move(3, 0)
    slow = [slow[3], slow[1], slow[2]]
    check(guidance, slow, generator)
    guidance.add(3, guards("bb", "a"))
    slow.append(SlowRow(guards("bb", "a")))
    check(guidance, slow, generator)
    guidance.add(0, guards("a"))  # a fresh request in the place of an old one
    slow[0] = SlowRow(guards("a"))
    check(guidance, slow, generator)


def test_without_pairs_every_row_keeps_the_bare_bits() -> None:
    guidance = seam()
    guidance.add(0, guards("a"))
    guidance.remove(0)
    check(guidance, [SlowRow([]), SlowRow([])], torch.Generator().manual_seed(1))
    assert len(guidance) == len(guidance.extra_rows) == 0


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(2)
    u, c, concept = (torch.randn(2, *SHAPE, generator=generator) for _ in range(3))
    scale, progress = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    both, alone = seam(), seam()
    both.add(0, guards("a"))
    both.add(1, guards("bb"))
    alone.add(0, guards("a"))
    together = combined(both, u, c, concept, scale, progress)
    single = combined(alone, u[:1], c[:1], concept[:1], scale[:1], progress[:1])
    assert torch.equal(together[0], single[0])


def test_half_precision_is_kept() -> None:
    guidance = seam()
    guidance.add(1, guards("a"))
    u, c, concept = (torch.randn(n, *SHAPE).half() for n in (2, 2, 1))
    out = combined(guidance, u, c, concept, torch.full((2,), 3.0), torch.zeros(2))
    assert out.dtype == torch.float16
    assert torch.equal(out[0], u[0] + torch.tensor(3.0).half() * (c[0] - u[0]))


def test_unknown_guards_and_double_names_are_refused() -> None:
    guidance = seam()
    assert "ccc" in guidance and "d" not in guidance
    with pytest.raises(KeyError):
        guidance.add(0, guards("d"))
    with pytest.raises(ValueError, match="same name"):
        Guidance([Leaky("a", first=0.0), Leaky("a", first=1.0)])
