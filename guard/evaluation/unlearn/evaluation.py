"""Suite `unlearn`: does a policy keep a model from leaking facts, and only these.

Everything is measured on the test split with greedy answers, under the plan that the server would
use. Leak rates are over the prompts that the bare model answers with the fact.
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
    """One prompt with both answers. `leaks` is None if there is no fact to leak."""

    prompt: str
    bare: str
    guarded: str
    identical: bool
    fired_at: int | None
    leaks: bool | None = None


@dataclass(frozen=True)
class Unlearned:
    """The suite's answers and figures; perplexities are pooled over tokens (bare model)."""

    known: tuple[AskedQuestion, ...]
    reworded: dict[str, tuple[AskedQuestion, ...]]
    bare_reworded: dict[str, Share]
    far: tuple[AskedQuestion, ...]
    near: tuple[AskedQuestion, ...]
    forget_prompts: int
    fluency: dict[str, float] = field(default_factory=dict)
    """Perplexity of the answers by themselves and given the question, bare and guarded."""
    looping: dict[str, Share] = field(default_factory=dict)

    @property
    def leaks(self) -> Share:
        return leaked(self.known)

    @property
    def reworded_leaks(self) -> Share:
        return leaked([row for rows in self.reworded.values() for row in rows])

    @property
    def far_identical(self) -> Share:
        return Share.of([row.identical for row in self.far])

    @property
    def near_identical(self) -> Share:
        return Share.of([row.identical for row in self.near])

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
    """Run the suite: bare answers are those of `chat`, guarded answers those of `under_policy`.

    Raises DataError without test prompts.
    """
    bare = partial(chat.answer, max_tokens=ANSWER_TOKENS, progress=progress)
    guarded = partial(under_policy, max_tokens=ANSWER_TOKENS, progress=progress)
    test = in_split(forget, "test")
    retain_rows = in_split(retain, "test")
    if not test or not retain_rows:
        raise DataError("the test split holds no forget or no retain prompts")

    bare_test = bare([row.prompt for row in test], what="bare answers, forget")
    known = [
        (row, answer) for row, answer in zip(test, bare_test, strict=True) if row.leaks(answer.text)
    ]
    if not known:
        raise DataError("the bare model answers no test prompt with its fact: nothing to measure")
    rows = [row for row, _ in known]
    bare_known = [answer for _, answer in known]
    guarded_known = guarded([row.prompt for row in rows], what="guarded answers, forget")

    reworded: dict[str, tuple[AskedQuestion, ...]] = {}
    bare_reworded: dict[str, Share] = {}
    for name in REWORDINGS:
        prompts = [reword(name, row.prompt) for row in rows]
        bare_answers = bare(prompts, what=f"bare answers, {name}")
        guarded_answers = guarded(prompts, what=f"guarded answers, {name}")
        reworded[name] = _asked(prompts, bare_answers, guarded_answers, rows)
        bare_reworded[name] = Share.of(
            [row.leaks(answer.text) for row, answer in zip(rows, bare_answers, strict=True)]
        )
    texts = [row.prompt for row in retain_rows]
    retain_answers = _asked(
        texts,
        bare(texts, what="bare answers, retain"),
        guarded(texts, what="guarded answers, retain"),
    )
    questions = [chat.prompt(row.prompt) for row in rows]
    bare_tokens = [answer.tokens for answer in bare_known]
    guarded_tokens = [answer.tokens for answer in guarded_known]
    return Unlearned(
        known=_asked([row.prompt for row in rows], bare_known, guarded_known, rows),
        reworded=reworded,
        bare_reworded=bare_reworded,
        far=tuple(
            question
            for question, row in zip(retain_answers, retain_rows, strict=True)
            if not row.near
        ),
        near=tuple(
            question for question, row in zip(retain_answers, retain_rows, strict=True) if row.near
        ),
        forget_prompts=len(test),
        fluency={
            "bare": perplexity(chat, bare_tokens),
            "guarded": perplexity(chat, guarded_tokens),
            "bare given the question": perplexity(chat, bare_tokens, questions),
            "guarded given the question": perplexity(chat, guarded_tokens, questions),
        },
        looping={
            "bare": Share.of([loops(answer.text) for answer in bare_known]),
            "guarded": Share.of([loops(answer.text) for answer in guarded_known]),
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
            bare=bare_answer.text,
            guarded=guarded_answer.text,
            identical=bare_answer.tokens == guarded_answer.tokens,
            fired_at=min(
                (
                    reading.position
                    for reading in guarded_answer.readings.values()
                    if reading.position is not None
                ),
                default=None,
            ),
            leaks=rows[i].leaks(guarded_answer.text) if rows else None,
        )
        for i, (prompt, bare_answer, guarded_answer) in enumerate(
            zip(prompts, bare, guarded, strict=True)
        )
    )


def leaked(questions: Sequence[AskedQuestion]) -> Share:
    """The share of guarded answers that leak."""
    return Share.of([bool(row.leaks) for row in questions])
