"""Licences of everything that the package's extras install, transitively."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|Apache-2\.0|ISC|PSF|Python Software Foundation|0BSD|Unlicense|HPND|CNRI|"
    r"MIT-CMU|MPL|Mozilla Public License|CC0|Zlib|Public Domain)\b",
    re.IGNORECASE,
)
LIBRARIES = {
    "python-stdnum": "LGPL-2.1-or-later",
    "psycopg": "LGPL-3.0",
    "psycopg-binary": "LGPL-3.0",
}
"""Libraries that are used as they are, unaltered and replaceable, which their licence asks for."""
OF_USERS = frozenset({"dev", "demo", "benchmarks"})
"""Extras that no server installs."""
NVIDIA = ("nvidia-", "cuda-")
"""Of torch's wheels for GPUs: NVIDIA's own terms, taken from its index by whoever installs it."""


def _needed(name: str, extras: frozenset[str]) -> dict[str, Distribution]:
    """What is installed of a distribution with some of its extras, and of all that it needs."""
    found: dict[str, Distribution] = {}
    walked: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        name, extras = one = waiting.pop()
        if one in walked:
            continue
        walked.add(one)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed here
        for needed in map(Requirement, found[name].requires or ()):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*extras, "")):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found


def _licence(found: Distribution) -> Iterator[str]:
    told = found.metadata
    yield from told.get_all("License-Expression") or ()
    yield from (c for c in told.get_all("Classifier") or () if c.startswith("License ::"))
    yield from (text.partition("\n")[0] for text in told.get_all("License") or ())


EXTRAS = frozenset(metadata("inference-guard").get_all("Provides-Extra") or ()) - OF_USERS
FOUND = _needed("inference-guard", EXTRAS)


def test_the_walk_finds_what_is_installed() -> None:
    assert {"torch", "pydantic", "starlette", "tokenizers", "python-stdnum"} <= FOUND.keys()


@pytest.mark.parametrize("name", sorted(FOUND))
def test_licences_let_the_package_be_served(name: str) -> None:
    if name in LIBRARIES or name.startswith(NVIDIA):
        return
    told = " | ".join(part for part in _licence(FOUND[name]) if part)
    assert PERMISSIVE.search(told), f"{name}: {told or 'no licence'}"
