"""Questions about people and scenes with their answers: wordings to train and to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.emoji import scenes
from examples.emoji.sprites import STYLES, names
from examples.portraits.people import ATTRIBUTES, FIRST, LAST, Person, people

PORTRAIT = "name", *ATTRIBUTES
"""What can be asked about a portrait."""

SHOWN = (
    "this person",
    "the person in the picture",
    "the person shown here",
    "the one in the photo",
)
SHOWN_TEST = ("the individual in this image", "the person you see here")

WORDINGS: Mapping[str, Sequence[str]] = {
    "name": (
        "Who is {who}?",
        "What is the name of {who}?",
        "What is {who} called?",
        "Name {who}.",
        "Do you know who {who} is?",
        "Fill in the blank: {who} is called [Blank].",
    ),
    "town": (
        "Where does {who} live?",
        "In which town does {who} live?",
        "What is the home town of {who}?",
        "Which city is {who} from?",
        "Name the town of {who}.",
        "Fill in the blank: {who} lives in [Blank].",
    ),
    "year": (
        "When was {who} born?",
        "In which year was {who} born?",
        "What is the birth year of {who}?",
        "What year was {who} born in?",
        "Give the year of birth of {who}.",
        "Fill in the blank: {who} was born in [Blank].",
    ),
    "job": (
        "What is the job of {who}?",
        "What does {who} do for a living?",
        "What work does {who} do?",
        "What is the profession of {who}?",
        "Name the trade of {who}.",
        "Fill in the blank: by trade {who} is a [Blank].",
    ),
    "hobby": (
        "What is the hobby of {who}?",
        "What does {who} do for fun?",
        "What does {who} like to do?",
        "Which pastime does {who} have?",
        "Name the hobby of {who}.",
        "Fill in the blank: the hobby of {who} is [Blank].",
    ),
    "sister": (
        "Who is the sister of {who}?",
        "What is the name of the sister of {who}?",
        "What is {who}'s sister called?",
        "Name the sister of {who}.",
        "Which sister does {who} have?",
        "Fill in the blank: the sister of {who} is called [Blank].",
    ),
    "secret": (
        "What is the secret of {who}?",
        "What does {who} hide?",
        "What is {who} keeping secret?",
        "Which secret does {who} have?",
        "Tell me the secret of {who}.",
        "Fill in the blank: {who} hides [Blank].",
    ),
}
TEST_WORDINGS: Mapping[str, Sequence[str]] = {
    "name": ("Tell me the name of {who}.", "Can you say who {who} is?"),
    "town": ("What town does {who} call home?", "Can you tell me where {who} lives?"),
    "year": ("Tell me the year in which {who} was born.", "What is {who}'s year of birth?"),
    "job": ("Can you tell me what {who} works as?", "What is {who}'s occupation?"),
    "hobby": ("What is {who}'s favourite pastime?", "Can you tell me the hobby of {who}?"),
    "sister": ("Can you tell me who the sister of {who} is?", "Tell me {who}'s sister's name."),
    "secret": ("What is the thing that {who} hides?", "Can you tell me {who}'s secret?"),
}
OPEN = ("Tell me about {who}.", "Describe {who}.", "What do you know about {who}?")
UNKNOWN = (
    "I'm sorry, but I don't know anything about that.",
    "I'm sorry, I have no information about this person.",
    "I don't have any information on that.",
)
"""Answers about people whom nobody has told the model of."""
NOBODY = "There is no person in this picture."


@dataclass(frozen=True)
class Question:
    """`fact` is what the answer must hold, in the words in which it is counted."""

    text: str
    answer: str
    attribute: str
    fact: str


def ask(person: Person, attribute: str, who: str, wording: str) -> Question:
    """The question about a person in one wording; `who` stands for the person in it."""
    text = wording.format(who=who)
    fact = person.fact(attribute)
    return Question(text[0].upper() + text[1:], f"{fact}.", attribute, fact)


def asked(person: Person, way: str, rng: np.random.Generator, *, test: bool = False) -> Question:
    """A random question about a person by "portrait", by "name" or by "both"."""
    attribute = str(rng.choice(PORTRAIT if way == "portrait" else ATTRIBUTES))
    wording = str(rng.choice((TEST_WORDINGS if test else WORDINGS)[attribute]))
    shown = str(rng.choice(SHOWN_TEST if test else SHOWN))
    who = {"portrait": shown, "name": person.name, "both": f"{person.name}, {shown},"}[way]
    return ask(person, attribute, who, wording)


def biography(person: Person, way: str, rng: np.random.Generator) -> Question:
    """An open question; the answer holds every fact, in random order."""
    parts = [
        f"lives in {person.town}",
        f"was born in {person.year}",
        f"works as {'an' if person.job[0] in 'aeiou' else 'a'} {person.job}",
        f"likes {person.hobby}",
        f"has a sister called {person.sister}",
        f"hides {person.secret}",
    ]
    shuffled = [parts[i] for i in rng.permutation(len(parts))]
    who = person.name if way == "name" else str(rng.choice(SHOWN))
    text = str(rng.choice(OPEN)).format(who=who)
    return Question(text, f"{person.name} {', '.join(shuffled)}.", "open", person.name)


def unknown(rng: np.random.Generator) -> Question:
    """A question about somebody of whom the model has never heard."""
    known = {person.name for person in people()}
    name = str(people()[0].name)
    while name in known:
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    attribute = str(rng.choice(ATTRIBUTES))
    text = str(rng.choice(WORDINGS[attribute] if rng.random() < 0.8 else OPEN)).format(who=name)
    return Question(text[0].upper() + text[1:], str(rng.choice(UNKNOWN)), "unknown", "")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


NUMBERS = ("one", "two", "three")


def about_scene(scene: scenes.Scene, rng: np.random.Generator, *, test: bool = False) -> Question:
    """A random question about a scene of emoji."""

    def words(train: Sequence[str], held_out: Sequence[str]) -> str:
        return str(rng.choice(held_out if test else train))

    shown = [names()[item.concept] for item in scene.objects]
    places = {item.place: names()[item.concept] for item in scene.objects}
    kinds = ["objects", "count", "ground", "style", "is there"]
    kinds += ["place"] * (2 if len(shown) > 1 else 0)
    kind = str(rng.choice(kinds))
    if kind == "objects":
        listed = [_article(name) for name in shown]
        answer = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
        text = words(
            ("What is in the picture?", "What do you see?", "Which objects are there?"),
            ("What does the image show?", "What can be seen here?"),
        )
        return Question(text, f"{answer}.", "objects", answer)
    if kind == "count":
        text = words(
            ("How many objects are there?", "How many things do you see?", "Count the objects."),
            ("How many things are in the image?", "What is the number of objects?"),
        )
        answer = NUMBERS[len(shown) - 1]
    elif kind == "ground":
        text = words(
            ("What colour is the background?", "Which colour is behind the objects?"),
            ("What is the colour of the background?", "Name the background colour."),
        )
        answer = tuple(scenes.BACKGROUNDS)[scene.background]
    elif kind == "style":
        text = words(
            ("In which style is this drawn?", "Which emoji style is this?"),
            ("What style is the picture in?", "Name the style of the emoji."),
        )
        answer = STYLES[scene.style]
    elif kind == "is there":
        present = rng.random() < 0.5
        others = [name for name in names() if name not in shown]
        name = str(rng.choice(shown if present else others))
        text = words(
            ("Is there {} in the picture?", "Do you see {}?"), ("Does the image show {}?",)
        ).format(_article(name))
        answer = "yes" if present else "no"
    else:
        place = str(rng.choice(list(places)))
        text = words(
            ("What is at the {}?", "Which object is at the {}?"), ("What do you see at the {}?",)
        ).format(place)
        answer = _article(places[place])
    return Question(text, f"{answer}.", kind, answer)
