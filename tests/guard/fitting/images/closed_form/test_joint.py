"""Several concepts in one solve, against one concept that has all their phrases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.images.closed_form.joint import Joint
from guard.fitting.images.closed_form.rece import Rece
from guard.fitting.images.closed_form.uce import Uce
from tests.guard.fitting.images.closed_form.test_fit import built, deltas, fitted

HARD = ("a red table", "a table", "the table", "red", "the red dog", "on the table")


def concept(name: str, phrases: tuple[str, ...], hard: tuple[str, ...] = ()) -> Concept:
    content: dict[str, Any] = {
        "name": f"object/{name}",
        "phrases": {"train": phrases},
        "hard_negatives": (*HARD, *hard),
        "replacements": ("a banana",),
    }
    return Concept.model_validate(content)


KNIFE = concept("knife", ("a knife", "knife on the table"), ("a cat",))
CAT = concept("cat", ("a cat", "a small cat"), ("a knife",))
BOTH = concept("both", (*KNIFE.phrases.train, *CAT.phrases.train))


def test_a_joint_edit_is_that_of_one_concept_with_all_phrases() -> None:
    family = built("stable diffusion")
    for make in (Uce, lambda stead: Rece(Uce(stead), rounds=2)):
        joint = Joint([(KNIFE, make("a banana")), (CAT, make("a banana"))])
        got = deltas(fitted(family, joint, least_share=0.0))
        # what is erased for one concept is no hard negative of the other one
        expected = deltas(fitted(family, Joint([(BOTH, make("a banana"))]), least_share=0.0))
        sole = deltas(fitted(family, Joint([(KNIFE, make("a banana"))]), least_share=0.0))
        for layer, delta in expected.items():
            torch.testing.assert_close(got[layer], delta, rtol=1e-3, atol=1e-5)
            assert (sole[layer] - delta).abs().max() > 0.01 * delta.abs().max()


def test_every_concept_has_its_own_replacement() -> None:
    joint = Joint([(KNIFE, Uce("a banana")), (CAT, Uce("a dog"))])
    assert joint.replaced(BOTH) == [
        *((phrase, "a banana") for phrase in KNIFE.phrases.train),
        *((phrase, "a dog") for phrase in CAT.phrases.train),
    ]
    kept = joint.kept(BOTH, [])
    assert {"a red table", "a banana", ""} <= {*kept} and len({*kept}) == len(kept)
    assert not {"a knife", "a cat"} & {*kept}
    settings = fitted(built("emoji"), joint, least_share=0.0).meta.settings
    assert settings["instead"] == {"object/knife": "a banana", "object/cat": "a dog"}


def test_a_phrase_of_two_concepts_cannot_become_two_things() -> None:
    joint = Joint([(KNIFE, Uce("a banana")), (BOTH, Uce("a dog"))])
    with pytest.raises(DataError, match="'a knife' is a phrase of two concepts, .*'a banana'.*dog"):
        fitted(built("emoji"), joint)
