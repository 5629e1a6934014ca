"""What belongs to a concept: names and terms, from documents about it and from the model itself.

One gate cannot hold a whole world, so a guard has a gate for each thing that belongs to its
concept. A term counts where the model's answers to several questions agree on it, or where the
model, asked about the term, comes back to the concept: whatever it says is what must go, true or
not. Those that lead back come first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

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
AGREED = 2
"""Answers in which a term must occur, or times that documents must say it."""
FROM_MODEL, FROM_DOCUMENTS = 16, 24
"""The most terms from either."""
CHECK = 40
"""The most terms about which the model is asked."""
QUESTIONS, QUESTIONS_ASKED = 6, 24
"""The most questions that have a gate of their own, and that the model is asked."""
FREQUENT = 2**14
"""A word that is one of so many first tokens of the vocabulary, which are its most frequent ones
("American", "Italy"), belongs to everything."""
ANSWER_TOKENS = 96
SENTENCES = 48
"""The most sentences of documents that are used as prompts."""

_WORD = r"(?:(?:St|Mt|Dr)\. )?(?:(?:[^\W\d_a-z]\.)+ ?)?[^\W\d_a-z][\w'’-]*"
_NAME = re.compile(rf"{_WORD}(?: (?:(?:of|the|de|von|van) )?{_WORD}){{0,3}}")
_TITLE = re.compile(r"[\"“]([^\W\d_a-z][^\"“”\n]{2,40})[\"”]")
_ENTRY = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*\**([^:.(–\n*]{2,40}?)\**\s*(?:[:.(–]|\s-\s|$)", re.M)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!St\.)(?<!Mt\.)(?<!Dr\.)(?<![A-Z]\.)\s+|\n+")
_QUESTION = re.compile(r"(?:^|[\n.!?:*])[\s\d.)*\"-]*([^\W\d_][^\n?!.]{14,160}\?)")
_ARTICLES = re.compile(r"^(?:the|a|an)\s+", re.I)
_COMMON_WORDS = """
    a after all also although american an and april are as at august before british but by
    december during english european february for french friday from german he her here his
    how however i if in is it its january july june many march may monday most my no not
    november october of on one or other our saturday september she some sunday that the
    their there these they this those thursday to tuesday was we wednesday were what when
    where which while who why with yes you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""No names by themselves, nor at the ends of one."""


@dataclass(frozen=True)
class Belonging:
    """A concept with its other names, and what belongs to it.

    `terms` are from documents first, then from the model; `sentences` are those of documents that
    say one of them; `known` says whether the model knows of the concept. `leaks` are prompts on
    which its guards did not fire and should have, `innocent` prompts on which they fired and
    should not have. `facts` are further texts that an answer leaks by; `instead` is said in place
    of an answer, which is steered where it is empty. `questions` do not name the concept, and the
    model answers them with it.
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

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the concept itself."""
        return (self.name, *self.aliases)


def what_belongs(
    chat: ChatModel,
    name: str,
    aliases: Sequence[str],
    documents: Sequence[str],
    progress: Stages,
) -> Belonging:
    """What belongs to a concept, by documents about it and by the model."""
    names = (name, *aliases)
    spoken = _counted((term for document in documents for term in names_in(document)), names)
    spoken = {term: count for term, count in spoken.items() if count >= AGREED}
    of_documents = [*spoken][:FROM_DOCUMENTS]
    # in two batches, since a step of one batch costs little more for more rows
    answers = chat.answer(
        [question.replace("{t}", name) for question in (*ASKED, *QUIZ)],
        max_tokens=ANSWER_TOKENS,
        what="what belongs to it",
        progress=progress,
    )
    answers, quizzes = answers[: len(ASKED)], answers[len(ASKED) :]
    told = [{file_name(term): term for term in terms(answer.text)} for answer in answers]
    counts = _counted((term for each in told for term in each.values()), names)
    known = {file_name(term) for term in of_documents}
    asked_about = [
        term for term in counts if file_name(term) not in known and not _is_frequent(chat, term)
    ][:CHECK]
    back = mentions(names)
    about_terms = [CHECKED.replace("{t}", term) for term in asked_about]
    asked = [*about_terms, *_unnamed_questions(quizzes, back)]
    checked = chat.answer(
        asked, max_tokens=ANSWER_TOKENS // 2, what="does it lead back", progress=progress
    )
    leads = [back.search(answer.text) is not None for answer in checked]
    leading = [*compress(asked_about, leads)]
    questions = [*compress(asked[len(about_terms) :], leads[len(about_terms) :])]
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


def terms(text: str) -> list[str]:
    """The names in an answer, titles in quotation marks, and the entries of its lists."""
    entries = [_cleaned(m.group(1)) for each in (_ENTRY, _TITLE) for m in each.finditer(text)]
    return [*names_in(text), *filter(None, entries)]


def names_in(text: str) -> list[str]:
    """The names in a text: words with capitals, but one that only begins a sentence."""
    found = []
    for sentence in _SENTENCE.split(text):
        for match in _NAME.finditer(sentence):
            name = match.group(0)
            if match.start() == 0 and " " not in name:
                continue
            found.append(_cleaned(name))
    return [name for name in found if name]


def mentions(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these names, whole words, case ignored; articles before them do not count."""
    bare = [re.escape(_ARTICLES.sub("", name)) for name in names]
    return re.compile(rf"(?<!\w)(?:{'|'.join(bare)})(?!\w)", re.IGNORECASE)


def _cleaned(term: str) -> str:
    words = _ARTICLES.sub("", term.strip(" \t\n'’\"*-.,;:")).split()
    while words and words[0].lower() in _COMMON:
        words = words[1:]
    while words and words[-1].lower() in _COMMON:
        words = words[:-1]
    kept = " ".join(words).removesuffix("'s").removesuffix("’s")
    return kept if 2 < len(kept) <= 40 and len(words) <= 5 else ""


def _counted(found: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """How often each term occurs, the commonest first, without names of the concept and parts of
    them."""
    spellings: dict[str, list[str]] = {}
    for term in found:
        # "Middle-earth" and "Middle-Earth" are one thing, and would be one file
        spellings.setdefault(file_name(term), []).append(term)
    counts = Counter({Counter(each).most_common(1)[0][0]: len(each) for each in spellings.values()})
    own = {word.lower() for name in names for word in name.split()}
    # what is the concept's own ("Disney's official logo") says its name
    owned = tuple(f"{name.lower()}{mark}s " for name in names for mark in "'’")
    kept = {
        term: count
        for term, count in counts.most_common()
        if not {word.lower() for word in term.split()} <= own and not term.lower().startswith(owned)
    }
    # of "Victor" and "Victor Frankenstein" the longer one, if it is as common
    return {
        term: count
        for term, count in kept.items()
        if not any(
            f" {term} " in f" {other} " and times >= min(count, AGREED)
            for other, times in kept.items()
            if other != term
        )
    }


def _is_frequent(chat: ChatModel, term: str) -> bool:
    tokens = chat.ids(f" {term}")
    return len(tokens) == 1 and tokens[0] < FREQUENT


def _said(found: Sequence[str], documents: Sequence[str]) -> dict[str, list[str]]:
    """The sentences that say each term, SENTENCES in all."""
    said: dict[str, list[str]] = {}
    for term in found:
        pattern, said[term] = mentions([term]), []
        for document in documents:
            matching = [s.strip() for s in _SENTENCE.split(document) if pattern.search(s)]
            said[term] += [s for s in matching if 20 <= len(s) <= 300]
        said[term] = said[term][: max(SENTENCES // max(len(found), 1), 1)]
    return said
