"""Penalties, biases and shortest answers: the numbers of transformers, in rows that move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.adjustments import Adjustments
from steering.hidden.bank import HiddenBank
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import VOCABULARY, prompt, tiny_model

CPU = torch.device("cpu")
PROMPT = [5, 9, 9, 30]
ANSWER = [7, 9, 7, 7, 50]
ALL = RowSampling(
    frequency_penalty=0.7,
    presence_penalty=-0.4,
    repetition_penalty=1.3,
    logit_bias=((7, 3.5), (9, -100.0), (60, 1.0)),
    min_tokens=9,
    ends=(2, 50),
)


def logits_of(rows: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def adjusted(sampling: RowSampling, answer: Sequence[int], logits: Tensor) -> Tensor:
    """The logits of one row `[vocabulary]` behind its answer."""
    adjustments = Adjustments(4, VOCABULARY, CPU)
    rows = np.array([2])
    adjustments.add(2, sampling, PROMPT)
    for token in answer:
        adjustments.count(rows, torch.tensor([token]))
    return adjustments.apply(rows, torch.tensor([len(answer)]), logits[None])[0]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = logits_of(1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + ANSWER]), logits)
    ours = adjusted(RowSampling(repetition_penalty=penalty), ANSWER, logits[0])
    assert torch.equal(ours, theirs[0])


def test_biases_are_those_of_transformers() -> None:
    logits = logits_of(1)
    biases = {(7,): 3.5, (9,): -100.0, (60,): 1.0}
    theirs = SequenceBiasLogitsProcessor(biases)(torch.tensor([PROMPT + ANSWER]), logits)
    ours = adjusted(RowSampling(logit_bias=ALL.logit_bias), ANSWER, logits[0])
    assert torch.equal(ours, theirs[0])


@pytest.mark.parametrize("least", [4, 5, 6])
def test_no_end_comes_before_min_tokens(least: int) -> None:
    logits = logits_of(1)
    theirs = MinNewTokensLengthLogitsProcessor(len(PROMPT), least, [2, 50], device="cpu")(
        torch.tensor([PROMPT + ANSWER]), logits.clone()
    )
    ours = adjusted(RowSampling(min_tokens=least, ends=(2, 50)), ANSWER, logits[0])
    assert torch.equal(ours, theirs[0])
    assert bool(ours[2].isinf()) == (least > len(ANSWER))


def test_frequency_and_presence_penalties_follow_openais_formula() -> None:
    logits = logits_of(1)[0]
    sampling = RowSampling(frequency_penalty=0.7, presence_penalty=-0.4)
    expected = logits.clone()
    for token in set(ANSWER):  # of the prompt no token counts
        expected[token] -= 0.7 * ANSWER.count(token) - 0.4
    assert torch.allclose(adjusted(sampling, ANSWER, logits), expected, rtol=0, atol=1e-6)


def test_all_together_are_the_sum_of_their_parts_in_the_order_of_transformers() -> None:
    logits = logits_of(1)
    seen = torch.tensor([PROMPT + ANSWER])
    biases = {(token,): bias for token, bias in ALL.logit_bias}
    expected = SequenceBiasLogitsProcessor(biases)(seen, logits)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, expected)[0]
    for token in set(ANSWER):
        expected[token] -= 0.7 * ANSWER.count(token) - 0.4
    expected[[2, 50]] = -torch.inf
    assert torch.allclose(adjusted(ALL, ANSWER, logits[0]), expected, rtol=0, atol=1e-5)


def test_rows_without_adjustments_keep_their_bits_and_need_no_memory() -> None:
    adjustments = Adjustments(4, VOCABULARY, CPU)
    logits, steps = logits_of(3), torch.zeros(3, dtype=torch.long)
    rows = np.array([0, 1, 2])
    for row in rows:
        adjustments.add(row, RowSampling(temperature=1.0), PROMPT)
    assert adjustments.apply(rows, steps, logits) is logits
    assert not len(adjustments._slots)
    adjustments.add(1, ALL, PROMPT)
    mixed = adjustments.apply(rows, steps, logits)
    assert torch.equal(mixed[[0, 2]], logits[[0, 2]]) and not torch.equal(mixed[1], logits[1])
    adjustments.remove(1)
    assert not len(adjustments._slots)


def test_a_row_keeps_what_it_has_counted_while_rows_come_go_and_move() -> None:
    adjustments = Adjustments(6, VOCABULARY, CPU)
    logits = logits_of(1)[0]
    adjustments.add(5, ALL, PROMPT)
    for token in ANSWER[:2]:
        adjustments.count(np.array([5]), torch.tensor([token]))
    adjustments.add(0, ALL, [1])
    adjustments.add(1, ALL, [1])  # the slots grow
    adjustments.move(5, 0)  # and a row that had one is replaced
    adjustments.add(3, ALL, [1, 2, 3])
    for token in ANSWER[2:]:
        adjustments.count(np.array([1, 0]), torch.tensor([11, token]))
    both = adjustments.apply(
        np.array([4, 0]), torch.tensor([0, len(ANSWER)]), torch.stack([logits, logits])
    )
    assert torch.equal(both[0], logits)
    assert torch.equal(both[1], adjusted(ALL, ANSWER, logits))


def test_answers_of_the_engine_do_not_depend_on_the_batch() -> None:
    """Rows join and leave, so that they move; a long prompt is read in parts."""
    samplings = [
        RowSampling(),
        RowSampling(frequency_penalty=2.0, presence_penalty=2.0),
        RowSampling(temperature=1.0, seed=3, top_k=5, repetition_penalty=1.5),
        RowSampling(temperature=1.0, seed=4),
        RowSampling(temperature=1.2, seed=5, min_p=0.2, logit_bias=((40, 4.0),)),
    ]
    engine = TransformersEngine(tiny_model(), HiddenBank(), capacity=5)
    starts = [start(prompt(6 + i, i), sampling=s) for i, s in enumerate(samplings)]
    alone = [ids(serve(engine, [one], tokens=12)[0])[0] for one in starts]
    beside = ids(serve(engine, starts, joins=[0, 3, 1, 2, 2], tokens=[3, 12, 9, 4, 12])[0])
    assert beside == [alone[i][: len(tokens)] for i, tokens in enumerate(beside)]
    assert len(set(alone[1])) == len(alone[1]), "no token comes twice under these penalties"
    bare = ids(serve(engine, [start(prompt(7, 1))], tokens=12)[0])[0]
    assert alone[1] != bare
    engine.begin(starts[1])
    while (first := engine.read(2)) is None:
        pass
    parts = [first.token, *(engine.decode()[0].token for _ in range(11))]
    assert parts == alone[1]
    engine.close()
