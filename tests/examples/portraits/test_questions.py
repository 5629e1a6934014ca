import numpy as np
import pytest

from examples.emoji.scenes import draw
from examples.portraits import questions
from examples.portraits.people import ATTRIBUTES, people
from examples.portraits.questions import PORTRAIT, SHOWN, SHOWN_TEST, TEST_WORDINGS, WORDINGS


def test_wordings_of_the_test_stand_in_no_training():
    for attribute in PORTRAIT:
        assert not set(WORDINGS[attribute]) & set(TEST_WORDINGS[attribute])
    assert not set(SHOWN) & set(SHOWN_TEST)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_question_names_the_person_and_its_answer_the_fact(attribute):
    person = people()[3]
    question = questions.ask(person, attribute, person.name, WORDINGS[attribute][0])
    assert person.name in question.text
    assert question.fact == person.fact(attribute)
    assert question.answer == f"{question.fact}."


def test_an_open_answer_holds_every_fact():
    person = people()[7]
    answer = questions.biography(person, "name", np.random.default_rng(0)).answer
    assert all(person.fact(attribute) in answer for attribute in PORTRAIT)


def test_a_stranger_is_nobody_of_the_data():
    rng = np.random.default_rng(0)
    texts = [questions.unknown(rng).text for _ in range(200)]
    assert not any(person.name in text for person in people() for text in texts)


def test_a_scene_is_described_as_it_was_drawn():
    rng = np.random.default_rng(5)
    for _ in range(50):
        scene = draw(2, rng)
        question = questions.about_scene(scene, rng)
        if question.attribute == "count":
            assert question.fact == "two"
        if question.attribute == "objects":
            assert all(name in question.fact for name in scene.names)
        if question.attribute == "is there":
            asked = any(name in question.text for name in scene.names)
            assert question.fact == ("yes" if asked else "no")
