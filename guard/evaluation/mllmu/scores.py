"""What is right in an answer: the option's letter, the blank, facts, overlap of words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guard.data.benchmarks.questions import Question

_WORD = re.compile(r"[a-z0-9]+")


def first_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that the released evaluation of MLLMU-Bench reads: the answer's first character,
    None where it is no option's letter."""
    letter = answer.strip()[:1].upper()
    return letter if letter in options else None


def fills(answer: str, truth: str) -> bool:
    """Whether a cloze is right: the truth is in the answer, whatever its case (MLLMU-Bench)."""
    return truth.casefold().strip() in answer.casefold()


def holds_fact(answer: str, facts: Iterable[str]) -> bool:
    """Whether any fact stands in the answer, as whole words, whatever its case."""
    return any(
        re.search(rf"(?<!\w){re.escape(fact.strip())}(?!\w)", answer, re.IGNORECASE)
        for fact in facts
        if fact.strip()
    )


@dataclass(frozen=True, slots=True)
class Rouge:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), in 0..1, on lower-case words unstemmed."""

    one: float
    two: float
    longest: float

    @classmethod
    def of(cls, answer: str, truth: str) -> Rouge:
        said, true = _WORD.findall(answer.lower()), _WORD.findall(truth.lower())
        return cls(
            _overlap(said, true, 1),
            _overlap(said, true, 2),
            _f1(_longest_common(said, true), len(said), len(true)),
        )


def _overlap(said: Sequence[str], true: Sequence[str], size: int) -> float:
    a, b = _grams(said, size), _grams(true, size)
    return _f1((a & b).total(), a.total(), b.total())


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def _f1(common: int, said: int, true: int) -> float:
    return 2 * common / (said + true) if common else 0.0


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def chance(
    questions: Sequence[Question], prior: Sequence[Question], *, lettered: bool = True
) -> float | None:
    """The expected share that a guess without knowledge of the person gets right; None of nothing.

    Of a classification it is a random option, or, where the answers are letters (`lettered`), the
    most frequent one of the correct answers, whichever is more. Elsewhere: for each question the
    most frequent answer to the same question (`Question.slot`) about anyone in `prior`, which are
    questions of the same task.
    """
    if not questions:
        return None
    if questions[0].task == "classification":
        uniform = sum(1 / len(question.options) for question in questions) / len(questions)
        if not lettered:
            return uniform
        letters = Counter(question.truth for question in questions)
        return max(uniform, letters.most_common(1)[0][1] / len(questions))
    answers: dict[tuple[str, str], Counter[str]] = {}
    for question in prior:
        answers.setdefault((question.by, question.slot), Counter())[_answer(question)] += 1
    right = 0
    for question in questions:
        known = answers.get((question.by, question.slot))
        if known and known.most_common(1)[0][0] == _answer(question):
            right += 1
    return right / len(questions)


def chance_by_prior(questions: Sequence[Question], known: Iterable[Question]) -> float | None:
    """The expected share of classifications that a guess gets right which knows everybody else: the
    option that is most often the answer to the same question (`Question.slot`) about other people
    in `known`, a random one of those that are so equally often. None of nothing."""
    answers: dict[str, dict[tuple[bool, str], str]] = {}
    for question in known:
        if question.task == "classification":
            answers.setdefault(question.slot, {})[_person(question)] = _option(question)
    counts = {slot: Counter(of_people.values()) for slot, of_people in answers.items()}
    right = 0.0
    for question in questions:
        count = counts.get(question.slot, Counter()).copy()
        if own := answers.get(question.slot, {}).get(_person(question)):
            count[own] -= 1
        often = {letter: count[text.casefold()] for letter, text in question.options.items()}
        best = [letter for letter, times in often.items() if times == max(often.values())]
        right += (question.truth in best) / len(best)
    return right / len(questions) if questions else None


def _person(question: Question) -> tuple[bool, str]:
    # celebrities are numbered on their own
    return question.part == "celebrities", question.person


def _option(question: Question) -> str:
    return question.options[question.truth].casefold()


def _answer(question: Question) -> str:
    return " / ".join(question.facts or (question.truth,)).casefold()
