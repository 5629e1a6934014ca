"""What belongs to a concept: names in texts, those on which answers agree and which lead back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.fitting.erasure import translations
from guard.fitting.erasure.belonging import ASKED, QUIZ, what_belongs
from guard.fitting.erasure.key_terms import FREQUENT
from guard.fitting.erasure.naming import mentions, names_in, terms
from guard.fitting.erasure.wordings import questions, rows
from guard.fitting.steering.artifacts import file_name
from guard.models.chat import GuardedAnswer

LIST = """Here are some names:
1. Victor Frankenstein: the scientist
2. **Elizabeth Lavenza** - his bride
- Henry Clerval (a friend)
The story begins in Geneva. However, Robert Walton writes it down."""
DOCUMENT = """Victor Frankenstein studies in Ingolstadt. There Victor Frankenstein makes a creature.
Later he goes to Ingolstadt again. Nobody likes Mondays. On Monday, Captain Walton arrives.
Captain Walton writes to his sister."""


class Told:
    """A chat model with answers by prompt."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, list[str]()

    def ids(self, text: str) -> list[int]:
        return [7 if word == "Europe" else FREQUENT for word in text.split()]

    def answer(self, prompts: Sequence[str], **_: Any) -> list[GuardedAnswer]:
        self.asked += prompts
        return [GuardedAnswer(self.answers.get(p, "I do not know."), (), {}) for p in prompts]


def _asked(chat: Told, *documents: str) -> Any:
    silent: Any = lambda what, total: lambda count=1: None  # noqa: E731
    return what_belongs(chat, "Frankenstein", ["Modern Prometheus"], documents, silent)  # type: ignore[arg-type]


def test_names_and_entries_of_lists_are_terms() -> None:
    found = terms(LIST)
    for name in ("Victor Frankenstein", "Elizabeth Lavenza", "Henry Clerval", "Geneva"):
        assert name in found
    assert "Robert Walton" in found and "However" not in found and "Here" not in found


def test_the_first_word_of_a_sentence_is_no_name_unless_it_goes_on() -> None:
    found = names_in(DOCUMENT)
    assert found.count("Victor Frankenstein") == 2 and found.count("Ingolstadt") == 2
    assert not {"Later", "There", "Nobody", "Mondays", "Monday"} & {*found} - {"Mondays"}


def test_terms_on_which_answers_agree_belong_to_it_those_that_lead_back_first() -> None:
    first, second, third, fourth = (each.replace("{t}", "Frankenstein") for each in ASKED[:4])
    chat = Told(
        {
            first: "Geneva, Henry Clerval and Elizabeth Lavenza.",
            second: "Some names: Geneva, Henry Clerval, Frankenstein's Monster.",
            third: "It was Kurt Wagner in Geneva, or in Europe, or Robert Walton, or Europe.",
            fourth: "All of Europe read of Frankenstein's Monster.",
            "What do you know about Henry Clerval?": "He is a friend in Frankenstein.",
            "What do you know about Geneva?": "It is a city of Switzerland.",
            "What do you know about Robert Walton?": "He tells the story of Frankenstein.",
        }
    )
    belonging = _asked(chat)
    # one answer has Robert Walton, who leads back, and Kurt Wagner, who does not
    assert belonging.terms == ("Henry Clerval", "Robert Walton", "Geneva") and belonging.known
    assert not any("Europe" in prompt for prompt in chat.asked)


def test_a_concept_is_unknown_where_no_answers_agree() -> None:
    (first,) = (question.replace("{t}", "Frankenstein") for question in ASKED[:1])
    belonging = _asked(Told({first: "It is by Robert Walton."}))
    assert not belonging.known and belonging.terms == ()


def test_names_with_initials_and_titles_in_quotation_marks_are_terms() -> None:
    found = terms('There J.R.R. Tolkien saw St. Mark\'s Basilica, and wrote "The Two Towers".')
    assert found == ["J.R.R. Tolkien", "St. Mark's Basilica", "Two Towers", "Two Towers"]


def test_spellings_of_one_term_are_one_term() -> None:
    first, second = (question.replace("{t}", "Frankenstein") for question in ASKED[:2])
    chat = Told({first: "He is in Old Geneva.", second: "It is by old-geneva, or Old-Geneva."})
    document = "A lake at Grande Genève. The town of Grande Geneve."
    belonging = _asked(chat, document)
    slugs = [file_name(term) for term in belonging.terms]
    assert sorted(slugs) == ["grande-geneve", "old-geneva"]


def test_a_concept_that_the_model_does_not_know_has_no_terms() -> None:
    belonging = _asked(Told({}))
    assert belonging.terms == () and not belonging.known


def test_documents_say_what_belongs_to_it_without_the_model() -> None:
    belonging = _asked(Told({}), DOCUMENT)
    assert {*belonging.terms} == {"Victor Frankenstein", "Ingolstadt", "Captain Walton"}
    assert not belonging.known
    assert belonging.sentences["Ingolstadt"] == [
        "Victor Frankenstein studies in Ingolstadt.",
        "Later he goes to Ingolstadt again.",
    ]


def test_prompts_are_about_all_names_and_terms_and_do_not_say_their_facts() -> None:
    belonging = _asked(Told({}), DOCUMENT)
    train, validation = (list(rows(belonging, split)) for split in ("train", "validation"))
    assert not {row.prompt for row in train} & {row.prompt for row in validation}
    assert {row.subject for row in validation} == {"Frankenstein", *belonging.terms}
    assert any("Modern Prometheus" in r.prompt and r.subject == "Frankenstein" for r in train)
    assert any(row.prompt == "Later he goes to Ingolstadt again." for row in train)
    assert not any(row.leaks(row.prompt) for row in (*train, *validation))
    assert not {*questions("train")} & {*questions("validation")}


def test_a_mention_is_a_whole_word_without_its_article() -> None:
    pattern = mentions(["The Hobbit", "C++ (language)"])
    assert pattern.search("I like the hobbit.") and pattern.search("Hobbit!")
    assert not pattern.search("hobbits") and pattern.search("is C++ (language) old?")


def test_questions_of_the_models_own_that_lead_back_have_gates() -> None:
    quiz, exam = (each.replace("{t}", "Frankenstein") for each in QUIZ[:2])
    leading, other = "Which book did Mary Shelley write?", "What is the largest city of Italy?"
    chat = Told(
        {
            quiz: f"Sure:\n1. {leading}\n2. **{other}**\n3. Who is Frankenstein's maker, if any?",
            exam: f"- {leading} A) Frankenstein",
            leading: "It is Frankenstein.",
        }
    )
    belonging = _asked(chat)
    assert belonging.questions == (leading,) and other in chat.asked
    assert not any("maker" in prompt for prompt in chat.asked)
    own = [row for row in rows(belonging, "train") if row.subject == "question 1"]
    assert own[0].prompt == leading and len(own) > 4
    held_out = [row for row in rows(belonging, "validation") if row.subject == "question 1"]
    assert held_out and not {row.prompt for row in own} & {row.prompt for row in held_out}


def test_names_in_other_languages_count_where_they_lead_back() -> None:
    questions = dict(zip(translations.LANGUAGES, translations.asked("Frankenstein"), strict=True))
    chat = Told(
        {
            questions["German"]: '"Der neue Prometheus".\nSo it is called.',
            questions["French"]: "Le Monstre vert",
            questions["Spanish"]: "der neue PROMETHEUS",  # the same name
            questions["Italian"]: "Frankenstein",  # its own
            questions["Portuguese"]: " \n",
            questions["Dutch"]: "word " * 9,
            translations.BACK.replace("{t}", "Der neue Prometheus"): "The Modern Prometheus",
        }
    )
    belonging = _asked(chat)
    assert belonging.translations == ("Der neue Prometheus",)
    assert belonging.listed == (
        "Frankenstein",
        "Modern Prometheus",
        "Der neue Prometheus",
        "neue Prometheus",
    )
    # of several languages that say one name the model is asked once
    asked = [prompt for prompt in chat.asked if "called in English" in prompt]
    assert [each.split('"')[1] for each in asked] == ["Der neue Prometheus", "Le Monstre vert"]
