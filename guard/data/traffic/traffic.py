"""The texts of the bank of software traffic: families of innocent texts around models.

Instructions of agents, schemas of tools, errors, support, code review, people whose work touches on
what screens look for. A screen must stay silent on all of them.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_TEXTS = ("agents", "planning", "programs", "people", "defenders", "products")
_AGENTS = ("agents", "planning")
_SLOT = re.compile(r"(?<!{){(\w+)}(?!})")
_VARIANTS = 3
"""Of a text with names to fill in."""

Slots = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Family:
    """Texts of one kind; all of them are in one part of a split. `area` is that of the file."""

    name: str
    area: str
    texts: tuple[str, ...]


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of the files; no text is in two of them."""
    seen: set[str] = set()
    found = []
    for area, name, texts in _written(_read("slots")):
        new = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(new)
        found.append(Family(name, area, tuple(new)))
    return tuple(found)


@cache
def whole_prompts() -> Mapping[str, Sequence[str]]:
    """Prompts of agents as long as real ones, put together from a product's instructions, tools
    and two texts of agents, by the family of the first of these."""
    by_area: dict[str, list[str]] = {}
    for family in families():
        by_area.setdefault(family.area, []).extend(family.texts)
    signatures = [text for text in by_area["tools"] if "\n" not in text and "): " in text]
    agents = [text for area in _AGENTS for text in by_area[area]]

    def joined(text: str) -> str:
        rng = random.Random(text)
        tools = "Tools:\n" + "\n".join(f"- {tool}" for tool in rng.sample(signatures, 3))
        parts = [rng.choice(by_area["products"]), tools, text, rng.choice(agents)]
        return "\n\n".join(rng.sample(parts, 3))

    chosen = [family for family in families() if family.area in _AGENTS]
    return {family.name: [joined(text) for text in family.texts] for family in chosen}


def _written(slots: Slots) -> Iterator[tuple[str, str, list[str]]]:
    """Area, name and texts of each family."""
    for area in _TEXTS:
        for name, wordings in _read(area).items():
            yield area, name, [text for wording in wordings for text in _filled(wording, slots)]
    for name, tools in _read("tools").items():
        shown = [_tool(tool, *about) for tool, about in tools.items()]
        yield "tools", f"tools: {name}", [text for texts in shown for text in texts]


def _filled(wording: str, slots: Slots) -> Iterator[str]:
    # by wording: a new text changes no other one
    rng = random.Random(wording)
    names = dict.fromkeys(_SLOT.findall(wording))
    for _ in range(_VARIANTS if names else 1):
        yield wording.format_map({name: rng.choice(slots[name]) for name in names})


def _tool(name: str, about: str, parameters: Mapping[str, str]) -> list[str]:
    """A tool as a screen reads it in a request, as a line of a prompt, as JSON, and as code."""
    plain = "\n".join([name, about, *(text for pair in parameters.items() for text in pair)])
    line = f"{name}({', '.join(parameters)}): {about}"
    properties = {key: {"type": "string", "description": say} for key, say in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    described = json.dumps({"name": name, "description": about, "parameters": schema})
    listed = "".join(f"\n        {key}: {say}" for key, say in parameters.items())
    signature = ", ".join(f"{key}: string" for key in parameters)
    code = f'def {name}({signature}) -> string:\n    """{about}\n\n    Args:{listed}\n    """'
    return [plain, line, described, code]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text("utf-8"))
