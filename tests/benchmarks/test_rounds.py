"""Rounds run every side once, after a warm-up; ratios are within a round."""

from __future__ import annotations

from benchmarks.rounds import ratios, shuffled_rounds, summary


def test_every_round_has_every_side_once_in_changing_order() -> None:
    rounds: dict[int, list[str]] = {}
    for number, side in shuffled_rounds("abcd", 6):
        rounds.setdefault(number, []).append(side)
    assert list(rounds) == list(range(7))
    assert all(sorted(sides) == list("abcd") for sides in rounds.values())
    assert len({"".join(sides) for sides in rounds.values()}) > 1
    assert list(shuffled_rounds("abcd", 6)) == list(shuffled_rounds("abcd", 6))


def test_a_summary_has_medians_and_the_quartiles_of_paired_ratios() -> None:
    paired = ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert paired == [2.0, 3.0, 1.0]
    assert summary([2.0, 6.0, 4.0], paired) == {
        "seconds": 4.0,
        "ratio": 2.0,
        "quartiles": [1.0, 3.0],
    }
