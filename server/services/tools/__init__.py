"""Calls of tools in the answers of language models: the table of families.

A family is one small file and one entry here; see `family.ToolFamily`.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.services.tools.family import ToolFamily
from server.services.tools.generic import GENERIC
from server.services.tools.hermes import HERMES
from server.services.tools.llama3 import LLAMA3
from server.services.tools.mistral import MISTRAL

FAMILIES: Mapping[str, ToolFamily] = {
    family.name: family for family in (HERMES, MISTRAL, LLAMA3, GENERIC)
}
"""By name, in the order in which a chat template is asked for their marks."""


def family_of(template: str) -> ToolFamily:
    """The family of a model by its chat template; `json` where no other is known by it."""
    for family in FAMILIES.values():
        if any(mark in template for mark in family.marks):
            return family
    return GENERIC
