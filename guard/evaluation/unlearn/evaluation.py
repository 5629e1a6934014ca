"""Suite `unlearn`: does a policy keep a model from saying what it knows, and only that.

Everything is measured on the test split with greedy answers, through the plan that the server
would run. Leak rates are over the prompts that the bare model answers with the counted fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.evaluation.fluency import loops, perplexity
from guard.evaluation.shares import Share
from guard.evaluation.unlearn.rewordings import REWORDINGS, reword
from guard.models.chat import Answers, ChatModel, GuardedAnswer
from guard.reporting.progress import Stages

ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One prompt, both answers. `leaks` is None where there is no fact to leak."""

    prompt: str
    bare: str
    guarded: str
    identical: bool
    fired_at: int | None
    leaks: bool | None = None


@dataclass(frozen=True)
class Unlearned:
    """The suite's figures; perplexities are pooled over tokens, under the bare model."""

    known: tuple[AskedQuestion, ...]
    reworded: dict[str, tuple[AskedQuestion, ...]]
    bare_reworded: dict[str, Share]
    far: tuple[AskedQuestion, ...]
    near: tuple[AskedQuestion, ...]
    forget_prompts: int
    fluency: dict[str, float] = field(default_factory=dict)
    """Perplexity of the answers by themselves and given their questions, bare and guarded."""
    looping: dict[str, Share] = field(default_factory=dict)

    @property
    def leaks(self) -> Share:
        return leaked(self.known)

    @property
    def reworded_leaks(self) -> Share:
        return leaked([asked for rows in self.reworded.values() for asked in rows])

    @property
    def far_identical(self) -> Share:
        return Share.of([asked.identical for asked in self.far])

    @property
    def near_identical(self) -> Share:
        return Share.of([asked.identical for asked in self.near])

    @property
    def fluency_ratio(self) -> float:
        return self.fluency["guarded"] / self.fluency["bare"]


def evaluate(
    chat: ChatModel,
    under_policy: Answers,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    progress: Stages,
) -> Unlearned:
    """Run the suite: bare answers are the chat's own, guarded ones are `under_policy`.

    Raises DataError without test prompts.
    """
    bare = partial(chat.answer, max_tokens=ANSWER_TOKENS, progress=progress)
    guarded = partial(under_policy, max_tokens=ANSWER_TOKENS, progress=progress)
    test = in_split(forget, "test")
    kept = in_split(retain, "test")
    if not test or not kept:
        raise DataError("the test split holds no forget or no retain prompts")

    every = bare([row.prompt for row in test], what="bare answers, forget")
    known = [(row, said) for row, said in zip(test, every, strict=True) if row.leaks(said.text)]
    if not known:
        raise DataError("the bare model answers no test prompt rightly: nothing to measure")
    rows = [row for row, _ in known]
    bare_known = [said for _, said in known]
    guarded_known = guarded([row.prompt for row in rows], what="guarded answers, forget")

    reworded: dict[str, tuple[AskedQuestion, ...]] = {}
    bare_reworded: dict[str, Share] = {}
    for name in REWORDINGS:
        prompts = [reword(name, row.prompt) for row in rows]
        plain = bare(prompts, what=f"bare answers, {name}")
        steered = guarded(prompts, what=f"guarded answers, {name}")
        reworded[name] = _asked(prompts, plain, steered, rows)
        bare_reworded[name] = Share.of(
            [row.leaks(said.text) for row, said in zip(rows, plain, strict=True)]
        )
    texts = [row.prompt for row in kept]
    both = _asked(
        texts,
        bare(texts, what="bare answers, retain"),
        guarded(texts, what="guarded answers, retain"),
    )
    asked = [chat.prompt(row.prompt) for row in rows]
    bare_tokens = [said.tokens for said in bare_known]
    guarded_tokens = [said.tokens for said in guarded_known]
    return Unlearned(
        known=_asked([row.prompt for row in rows], bare_known, guarded_known, rows),
        reworded=reworded,
        bare_reworded=bare_reworded,
        far=tuple(a for a, row in zip(both, kept, strict=True) if not row.near),
        near=tuple(a for a, row in zip(both, kept, strict=True) if row.near),
        forget_prompts=len(test),
        fluency={
            "bare": perplexity(chat, bare_tokens),
            "guarded": perplexity(chat, guarded_tokens),
            "bare given the question": perplexity(chat, bare_tokens, asked),
            "guarded given the question": perplexity(chat, guarded_tokens, asked),
        },
        looping={
            "bare": Share.of([loops(said.text) for said in bare_known]),
            "guarded": Share.of([loops(said.text) for said in guarded_known]),
        },
    )


def _asked(
    prompts: Sequence[str],
    bare: Sequence[GuardedAnswer],
    guarded: Sequence[GuardedAnswer],
    rows: Sequence[ForgetPrompt] = (),
) -> tuple[AskedQuestion, ...]:
    return tuple(
        AskedQuestion(
            prompt=prompt,
            bare=plain.text,
            guarded=steered.text,
            identical=plain.tokens == steered.tokens,
            fired_at=min(
                (r.position for r in steered.readings.values() if r.position is not None),
                default=None,
            ),
            leaks=rows[i].leaks(steered.text) if rows else None,
        )
        for i, (prompt, plain, steered) in enumerate(zip(prompts, bare, guarded, strict=True))
    )


def leaked(asked: Sequence[AskedQuestion]) -> Share:
    """How many of the guarded answers leak."""
    return Share.of([bool(row.leaks) for row in asked])
