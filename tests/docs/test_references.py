"""What the pages refer to exists: files, headings, tests, modules, error codes."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from steering.methods import GROUP
from tests.docs.pages import PAGES, ROOT, anchors, links, name, spans

FILE = re.compile(r"(?:guard|steering|classifiers|server|tests|benchmarks|examples|docs)/[\w./*-]+")
MODULE = re.compile(r"(?:guard|steering|classifiers|server|benchmarks)(?:\.[a-z_]\w*)+")
MADE = {"examples/emoji/m-erasure-scenes"}
"""Named in the pages, made by commands."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        if FILE.fullmatch(span) and span not in MADE:
            assert any(ROOT.glob(span.rstrip("/").replace("NAME", "*"))), span
        if MODULE.fullmatch(span) and span != GROUP:
            assert _exists(span), span


def _exists(dotted: str) -> bool:
    parent, _, last = dotted.rpartition(".")
    try:
        if importlib.util.find_spec(dotted):
            return True
    except ModuleNotFoundError:
        pass
    return hasattr(importlib.import_module(parent), last)


def _errors() -> dict[str, str | None]:
    """The classes of errors by name, with their code: those below GuardError, in any file."""
    bases: dict[str, list[str]] = {}
    codes: dict[str, str | None] = {}
    for file in [*ROOT.glob("guard/**/*.py"), *ROOT.glob("server/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                codes[node.name] = next(
                    (
                        part.value.value
                        for part in node.body
                        if isinstance(part, ast.Assign)
                        and isinstance(part.targets[0], ast.Name)
                        and part.targets[0].id == "code"
                        and isinstance(part.value, ast.Constant)
                    ),
                    None,
                )

    def raised(kind: str) -> bool:
        return kind == "GuardError" or any(raised(base) for base in bases.get(kind, ()))

    return {kind: codes[kind] for kind in bases if raised(kind)}


def test_every_error_has_a_heading() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE))
    errors = _errors()
    assert {code for code in errors.values() if code} <= headings
    # errors of commands have no code; GuardError and RequestError are only bases
    without = {kind for kind, code in errors.items() if not code} - {"GuardError", "RequestError"}
    assert without <= headings
    assert headings <= {*errors.values(), *errors}, "a heading of an error that is gone"
    for kind, code in errors.items():
        if code:
            section = text.partition(f"### `{code}`\n")[2].partition("\n### ")[0]
            assert f"`{kind}`" in section, f"{code} does not name its class {kind}"


def test_the_threat_model_names_a_test_for_each_defence() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!attempt|---|actor)(.+) \|$", text.split("## Getting", 1)[1], re.M)
    assert rows
    for row in rows:
        shown = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", row.split(" | ")[-1])
        assert shown and all((ROOT / path).exists() for path in shown), row
