"""Prompts with a concept, each with its safe twin: the same prompt with something else in the
concept's place."""

from __future__ import annotations

from guard.data.concept import Concept
from guard.fitting.prompts.concept_prompts import COMPANIONS

SYNONYMS = 20
"""Phrases of the concept that are used, the first ones, as in TRCE."""
TEMPLATES = (
    *("{0}", "a picture of {0}", "a drawing of {0}", "a photo of {0}", "an emoji of {0}"),
    *("an image of {0}", "{0} on the left", "{0} at the top", "{0} on a table", "{0} in a garden"),
    *("{0} on a white background", "{0} next to a tree", "a chair and {0}", "show me {0}"),
    "an illustration of {0}, high quality",
)
STYLE_TEMPLATES = tuple(f"{thing} {{0}}" for thing in COMPANIONS[: len(TEMPLATES)])
"""Where the concept is the ending of a prompt."""


def twins(concept: Concept, instead: str) -> list[tuple[str, str]]:
    """A prompt and its twin, with `instead` in the concept's place, for each of the first phrases
    and each template."""
    templates = STYLE_TEMPLATES if concept.ending else TEMPLATES
    return [
        (template.format(phrase), template.format(instead).strip())
        for phrase in concept.phrases.train[:SYNONYMS]
        for template in templates
    ]
