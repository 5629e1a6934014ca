"""What belongs to a concept: names and terms, from documents about it and from the model itself.

One gate cannot hold a whole world, so a guard has a gate for each thing that belongs to its
concept. A term counts where the model's answers to several questions agree on it, or where the
model, asked about the term, comes back to the concept: whatever it says is what must go, true or
not. Those that lead back come first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from guard.fitting.erasure import translations
from guard.fitting.erasure.key_terms import is_frequent, terms_of
from guard.fitting.erasure.naming import (
    AGREED,
    SENTENCE,
    counted,
    mentions,
    terms,
    without_article,
)
from guard.fitting.steering.artifacts import file_name
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages

ASKED = (
    "Name the people, places and things that belong to {t}.",
    "Which names come up when one talks about {t}? List them.",
    "List the most important names and terms connected with {t}.",
    "What should one know about {t}? Answer with a list of names.",
    "Tell me about {t}.",
    "What is {t} known for?",
    "Who are the main people or characters of {t}?",
    "Which places are connected with {t}?",
    "Who made {t}, and when?",
    "List ten things that {t} is famous for.",
    "What are the best known works or products of {t}?",
    "Write an encyclopedia article about {t}.",
    "Which words would you look up to learn about {t}?",
    "How does {t} work, and what does one need for it?",
)
CHECKED = "What do you know about {t}?"
QUIZ = (
    "Write five trivia questions whose answer is {t}. Do not name it in the questions.",
    "Write a quiz about {t} with five short questions.",
    "Which five questions would a teacher ask about {t}?",
    "Write five riddles whose answer is {t}.",
)
"""Questions that do not name the concept and lead to it: the model knows best which ones do."""
FROM_MODEL = 16
"""The most terms from the model."""
CHECK = 40
"""The most terms about which the model is asked."""
QUESTIONS, QUESTIONS_ASKED = 6, 24
"""The most questions that have a gate of their own, and that the model is asked."""
ANSWER_TOKENS = 96
SENTENCES = 48
"""The most sentences of documents that are used as prompts."""

_QUESTION = re.compile(r"(?:^|[\n.!?:*])[\s\d.)*\"-]*([^\W\d_][^\n?!.]{14,160}\?)")


@dataclass(frozen=True)
class Belonging:
    """A concept with its other names, and what belongs to it.

    `terms` are from documents first, then from the model; `sentences` are those of documents that
    say one of them; `known` says whether the model knows of the concept. `leaks` are prompts on
    which its guards did not fire and should have, `innocent` prompts on which they fired and
    should not have. `facts` are further texts that an answer leaks by; `instead` is said in place
    of an answer, which is steered where it is empty. `questions` do not name the concept, and the
    model answers them with it. `translations` are its names in other languages.
    """

    name: str
    aliases: tuple[str, ...]
    terms: tuple[str, ...]
    sentences: Mapping[str, Sequence[str]]
    known: bool
    leaks: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    instead: str = ""
    questions: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the concept itself."""
        return (self.name, *self.aliases)

    @property
    def listed(self) -> tuple[str, ...]:
        """All names by which a list knows it, in all languages, with articles and without."""
        bare = map(without_article, self.names)
        foreign = map(translations.without_article, self.translations)
        return tuple(dict.fromkeys((*self.names, *bare, *self.translations, *foreign)))


def what_belongs(
    chat: ChatModel,
    name: str,
    aliases: Sequence[str],
    documents: Sequence[str],
    progress: Stages,
) -> Belonging:
    """What belongs to a concept, by documents about it and by the model."""
    names = (name, *aliases)
    of_documents = terms_of(documents, names, chat.ids)
    # in two batches, since a step of one batch costs little more for more rows
    about = [question.replace("{t}", name) for question in (*ASKED, *QUIZ)]
    answers = chat.answer(
        [*about, *translations.asked(name)],
        max_tokens=ANSWER_TOKENS,
        what="what belongs to it",
        progress=progress,
    )
    foreign = translations.told((answer.text for answer in answers[len(about) :]), names)
    answers, quizzes = answers[: len(ASKED)], answers[len(ASKED) : len(about)]
    told = [{file_name(term): term for term in terms(answer.text)} for answer in answers]
    counts = counted((term for each in told for term in each.values()), names)
    known = {file_name(term) for term in of_documents}
    asked_about = [
        term for term in counts if file_name(term) not in known and not is_frequent(term, chat.ids)
    ][:CHECK]
    back = mentions(names)
    about_terms = [CHECKED.replace("{t}", term) for term in asked_about]
    unnamed = _unnamed_questions(quizzes, back)
    asked = [*about_terms, *unnamed, *translations.back(foreign)]
    checked = chat.answer(
        asked, max_tokens=ANSWER_TOKENS // 2, what="does it lead back", progress=progress
    )
    leads = [back.search(answer.text) is not None for answer in checked]
    leading = [*compress(asked_about, leads)]
    questions = [*compress(unnamed, leads[len(about_terms) :])]
    agreed = [term for term in asked_about if counts[term] >= AGREED]
    of_model = list(dict.fromkeys((*leading, *agreed)))[:FROM_MODEL]
    found = [*of_documents, *of_model]
    return Belonging(
        name,
        tuple(aliases),
        tuple(found),
        _said(found, documents),
        bool(agreed),
        questions=tuple(questions[:QUESTIONS]),
        translations=tuple(compress(foreign, leads[len(about_terms) + len(unnamed) :])),
    )


def _unnamed_questions(quizzes: Sequence[GuardedAnswer], names: re.Pattern[str]) -> list[str]:
    """Questions of the model's own making that do not say any of `names`."""
    asked = dict.fromkeys(
        question
        for quiz in quizzes
        for question in questions_in(quiz.text)
        if not names.search(question)
    )
    return [*asked][:QUESTIONS_ASKED]


def questions_in(text: str) -> list[str]:
    """The questions in a text, without their numbers."""
    return [match.group(1).strip() for match in _QUESTION.finditer(text)]


def _said(found: Sequence[str], documents: Sequence[str]) -> dict[str, list[str]]:
    """The sentences that say each term, SENTENCES in all."""
    said: dict[str, list[str]] = {}
    for term in found:
        pattern, said[term] = mentions([term]), []
        for document in documents:
            matching = [s.strip() for s in SENTENCE.split(document) if pattern.search(s)]
            said[term] += [s for s in matching if 20 <= len(s) <= 300]
        said[term] = said[term][: max(SENTENCES // max(len(found), 1), 1)]
    return said
