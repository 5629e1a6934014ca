"""Answers that go back: where sentences end, what is held back, and what the engine computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.offline import Answer, answers
from steering.engines.transformers.rewinding import HELD_BACK, HeldAnswer, Rewinds, Sentences
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.adjustments import Adjustments
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.table import RowFlags
from steering.methods.steer import bank_of
from steering.prompt import Prompt
from tests.steering.engines.driver import ids, start
from tests.steering.tiny import prompt, random_guard, tiny_model

PIECES = [
    "",
    "The",
    " cat",
    " sat",
    ".",
    " Mr",
    " Potter",
    "\n",
    " 1",
    "!",
    '"',
    " ran",
    "。",
    "猫",
]
PROMPT = Prompt((7, 8, 9))


class Words:
    """A tokenizer of a few pieces."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(PIECES[token] for token in tokens)


def tokens_of(*pieces: str) -> list[RowToken]:
    return [RowToken(PIECES.index(piece)) for piece in pieces]


LATEST = RowToken(PIECES.index(" ran"))


def held_answer(most: int = HELD_BACK) -> HeldAnswer:
    return HeldAnswer(Sentences(Words()), PROMPT, most=most)


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        ("The cat sat.", " The", True),
        ('He said "no!"', " She", True),
        ("The cat sat.\n", "The", True),
        ("The cat sat?**", "\n\nThe", True),
        ("猫です。", "猫", True),
        ("The cat sat", " The", False),
        ("version 3.", "5", False),
        ("by J.", " K", False),
        ("met Mr.", " Potter", False),
        ("\n1.", " The", False),
        ("and so...", " on", False),
        ("for example, e.g.", " cats", False),
        ("", "The", False),
    ],
)
def test_where_sentences_end(before: str, after: str, ends: bool) -> None:
    assert Sentences(Words()).ends(before, after) is ends


def test_tokens_are_settled_when_their_sentence_has_ended() -> None:
    held = held_answer()
    first, (next_,) = tokens_of("The", " cat", " sat", "."), tokens_of(" ran")
    assert [list(held.push(token)) for token in first] == [[], [], [], []]
    assert list(held.push(next_)) == first
    assert list(held.rest()) == [next_] and list(held.rest()) == []


def test_an_answer_goes_back_to_the_end_of_its_last_sentence() -> None:
    held = held_answer()
    for token in tokens_of("The", " cat", " sat", ".", " Mr", " Potter"):
        held.push(token)
    back = held.go_back(LATEST)
    words = (" Mr", " Potter", " ran")
    assert back.withdrawn == tuple(map(PIECES.index, words))
    assert (back.last, back.stuck) == (PIECES.index("."), False)
    assert len(held) == 4 and held.joint == " "
    # steered before, it ends where it comes to the topic once more
    for token in tokens_of(" ran", " Potter"):
        held.push(token)
    assert held.go_back(LATEST).stuck


def test_an_answer_without_a_sentence_goes_back_to_its_prompt() -> None:
    held = held_answer()
    for token in tokens_of(" Mr", " Potter"):
        held.push(token)
    back = held.go_back(LATEST)
    assert (len(back.withdrawn), back.last, back.stuck) == (3, 9, False)
    assert not held and held.joint == ""


def test_an_answer_that_was_steered_from_its_prompt_on_has_nothing_to_go_back_to() -> None:
    held = held_answer()
    held.push(RowToken(1, flags=RowFlags(fired=True, steered=True)))
    assert held.go_back(LATEST).stuck


@pytest.mark.parametrize("steered", [True, False])
def test_an_answer_that_is_steered_says_no_sentence_twice(steered: bool) -> None:
    held = held_answer()
    released: list[RowToken] = []
    for token in tokens_of(" cat", ".", " ran", ".", " cat", ".", " ran"):
        released += held.push(replace(token, flags=RowFlags(fired=True, steered=steered)))
    assert held.repeats is steered
    released += held.rest()
    assert len(released) == len(held) == (4 if steered else 7)


def test_a_long_sentence_is_held_back_in_part() -> None:
    held = held_answer()
    (token,) = tokens_of(" cat")
    released = sum(len(held.push(token)) for _ in range(3 * HELD_BACK))
    assert released == 2 * HELD_BACK
    back = held.go_back(LATEST)
    assert len(back.withdrawn) == HELD_BACK + 1 and len(held) == released and held.joint == "… "
    # its client has read the sentence's first part, which nothing can follow
    assert back.stuck


def test_a_stream_in_which_no_guard_acts_is_one_token_late() -> None:
    held, tokens = held_answer(most=1), tokens_of("The", " cat", " sat", ".", " Mr", " Potter")
    assert [list(held.push(token)) for token in tokens] == [[], *([each] for each in tokens[:-1])]
    back = held.go_back(LATEST)
    # the token on which the guard has fired is not sent, the sentence ends where it is
    assert back.withdrawn == (tokens[-1].token, LATEST.token)
    assert back.stuck and held.joint == "… " and len(held) == 5


def test_a_stream_goes_back_to_a_sentence_that_has_just_ended() -> None:
    held = held_answer(most=1)
    for token in tokens_of("The", " cat", " sat", ".", " Potter"):
        held.push(token)
    back = held.go_back(LATEST)
    assert (back.last, back.stuck, held.joint) == (PIECES.index("."), False, " ")
    # from here on it is steered, and held back
    assert not held.push(LATEST) and not held.push(LATEST)


def test_a_stream_that_is_steered_from_its_prompt_on_is_held_back() -> None:
    held = held_answer(most=1)
    steered = RowFlags(fired=True, steered=True)
    tokens = [replace(token, flags=steered) for token in tokens_of("The", " cat", ".", " ran")]
    assert [len(held.push(token)) for token in tokens] == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("rewinds", "streamed", "most"),
    [
        ("never", False, None),
        ("never", True, None),
        ("steered", False, HELD_BACK),
        ("steered", True, 1),
        ("always", True, HELD_BACK),
    ],
)
def test_what_a_policy_holds_back(rewinds: Rewinds, streamed: bool, most: int | None) -> None:
    sentences, tokens = Sentences(Words()), tokens_of(*[" cat"] * 70)
    held = HeldAnswer.under(Policy(rewinds), sentences, PROMPT, streamed=streamed)
    released = None if held is None else sum(len(held.push(token)) for token in tokens)
    assert released == (None if most is None else len(tokens) - most)
    # a message that may follow is never sent behind a part of a sentence
    says = HeldAnswer.under(Policy(rewinds, says_later=True), sentences, PROMPT, streamed=streamed)
    assert says is not None
    assert sum(len(says.push(token)) for token in tokens) == len(tokens) - HELD_BACK


NEVER, ALWAYS = float("inf"), -1e9
BANK = bank_of([replace(random_guard("g", pool=1), rest=1000)])
OTHER = prompt(5, 3)


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(tiny_model(), BANK, capacity=3)
    yield engine
    engine.close()


def late_firing(engine: TransformersEngine, asked: Sequence[int]) -> tuple[int, float]:
    """A generated token, behind the second, and the threshold at which the guard fires on it."""
    engine.reset()
    engine.prefill([start(asked, [RowGuard("g", NEVER, 0.0, acts=False, recheck=1e9)])])
    highest = -1e9
    for position in range(1, 30):
        engine.decode()
        score = engine.readings(0)["g"].score
        if position > 3 and score > highest + 0.1:
            return position, (highest + score) / 2
        highest = max(score, highest)
    raise AssertionError("no late maximum: take another seed")


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_row_that_goes_back_goes_on_as_if_it_had_been_steered_there(
    engine: TransformersEngine, left: int
) -> None:
    asked = prompt(9, 1)
    position, recheck = late_firing(engine, asked)
    engine.reset()
    guard = RowGuard("g", NEVER, 8.0, recheck=recheck)
    steps = [engine.prefill([start(OTHER), start(asked, [guard])])]
    steps += [engine.decode() for _ in range(position)]
    assert [step[1].flags.started for step in steps] == [False] * position + [True]
    kept = ids([[step[1] for step in steps]])[0][:left]
    withdrawn = ids([[step[1] for step in steps]])[0][left:]
    engine.rewind(1, withdrawn, [*asked, *kept][-1])
    went_on = [engine.decode() for _ in range(8)]
    # it begins to act there, and does not report that as a reason to go back once more
    assert not any(step[1].flags.started for step in went_on)
    reading = engine.readings(1)["g"]
    assert (reading.position, reading.rewinds) == (position, 1)

    engine.reset()
    reference = [engine.prefill([start([*asked, *kept], [RowGuard("g", ALWAYS, 8.0)])])[0]]
    reference += [engine.decode()[0] for _ in range(7)]
    assert ids([[step[1] for step in went_on]]) == ids([reference])

    engine.reset()
    bare = [engine.prefill([start(OTHER)])[0]] + [engine.decode()[0] for _ in range(position + 8)]
    assert ids([[step[0] for step in (*steps, *went_on)]]) == ids([bare])


@pytest.mark.parametrize("acts", [True, False])
def test_only_guards_that_act_steer_an_answer(engine: TransformersEngine, acts: bool) -> None:
    guard = RowGuard("g", ALWAYS, 1.0, acts=acts)
    tokens = engine.prefill([start(OTHER), start(prompt(9, 1), [guard])])
    for bare, guarded in (tokens, engine.decode()):
        assert (bare.flags.fired, bare.flags.steered) == (False, False)
        assert (guarded.flags.fired, guarded.flags.steered) == (True, acts)


def test_a_token_that_is_read_again_counts_once(engine: TransformersEngine) -> None:
    asked = prompt(9, 1)
    watches = RowGuard("g", NEVER, 0.0, acts=False, recheck=1e9)
    bank = bank_of([random_guard("g", pool=4)])
    engine.use(bank)
    engine.prefill([start(asked, [watches])])
    tokens = [engine.decode()[0].token for _ in range(4)]
    before = engine.readings(0)["g"].score
    engine.rewind(0, tokens[-1:], tokens[-2])
    assert engine.decode()[0].token == tokens[-1]
    assert engine.readings(0)["g"].score == before


def test_penalties_do_not_count_withdrawn_tokens() -> None:
    adjustments = Adjustments(2, 5, torch.device("cpu"))
    adjustments.add(1, RowSampling(frequency_penalty=1.0), [0])
    rows, steps, logits = np.array([1]), torch.zeros(1), torch.zeros(1, 5)
    for token in (3, 4, 3):
        adjustments.count(rows, torch.tensor([token]))
    assert adjustments.apply(rows, steps, logits).tolist() == [[0, 0, 0, -2, -1]]
    adjustments.withdraw(1, [4, 3])
    adjustments.withdraw(0, [4])  # a row without penalties
    assert adjustments.apply(rows, steps, logits).tolist() == [[0, 0, 0, -1, 0]]


@dataclass(frozen=True)
class Policy:
    """What an answer is under; guards that have fired end it as `end` says."""

    rewinds: Rewinds = "never"
    end: Literal["block", "say"] | None = None
    says_later: bool = False
    by_turn: bool = False
    message: str = "Not here."

    @property
    def may_end(self) -> bool:
        return self.end is not None

    def ending(self, readings: Mapping[str, Reading]) -> Literal["block", "say"] | None:
        return self.end if any(reading.fired for reading in readings.values()) else None


class Letters:
    """A tokenizer of a model whose answers have no sentences."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(97 + token % 26) for token in tokens)


def answered(
    engine: TransformersEngine, asked: Sequence[int], guard: RowGuard, policy: Policy | None
) -> Answer:
    (answer,) = answers(
        engine,
        [start(asked, [guard])],
        max_tokens=40,
        end_tokens=frozenset(),
        policy=policy,
        sentences=Sentences(Letters()),
    )
    return answer


def test_answers_without_a_server_follow_a_policy(engine: TransformersEngine) -> None:
    asked = prompt(9, 1)
    position, recheck = late_firing(engine, asked)
    late = RowGuard("g", NEVER, 8.0, recheck=recheck)
    steered = answered(engine, asked, RowGuard("g", ALWAYS, 8.0), None)
    back = answered(engine, asked, late, Policy("always"))
    assert back.tokens == steered.tokens and back.message == ""
    assert (back.readings["g"].rewinds, back.readings["g"].stuck) == (1, False)

    bare = answered(engine, asked, replace(late, acts=False), None)
    cut = answered(engine, asked, replace(late, acts=False), Policy(end="block"))
    assert cut.tokens == bare.tokens[: position - 1]
    later = Policy(end="say", says_later=True)
    assert answered(engine, asked, replace(late, acts=False), later).message == "Not here."
    at_once = answered(engine, asked, RowGuard("g", ALWAYS, 8.0, acts=False), Policy(end="say"))
    assert (at_once.tokens, at_once.message) == ((), "Not here.")

    # steered from its prompt on, and to be steered again: it ends
    both = RowGuard("g", ALWAYS, 0.0, recheck=ALWAYS)
    engine.use(bank_of([replace(random_guard("g", pool=1), rest=2)]))
    stuck = answered(engine, asked, both, Policy("always"))
    assert (stuck.tokens, stuck.message) == ((), "Not here.")
    assert stuck.readings["g"].stuck
