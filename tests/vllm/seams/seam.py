"""One seam, and its check against a source tree by reading it: no release has to be installed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

How = Literal["patched", "read", "official"]
"""The plugin replaces it, relies on it as it is, or is called by it as vLLM documents."""


@dataclass(frozen=True)
class Seam:
    """A class, method, function or module that the plugin relies on.

    `file` is below `vllm/`; `name` is "" for the module itself. `parameters` are the first ones in
    their order, without self; `keywords` have to be there in any place. `has` are members of a
    class, or names of a module. `calls` are what the function calls, in this order: "self.x" or
    "x", by its end.
    """

    file: str
    name: str
    why: str
    how: How = "patched"
    parameters: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As it is shown."""
        module = self.file.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        return f"{module}.{self.name}" if self.name else module


def problems(seam: Seam, tree: Path) -> list[str]:
    """What of the seam is not in the sources below `tree`, the folder of the package `vllm`."""
    try:
        module = _parsed(tree / seam.file)
    except FileNotFoundError:
        return ["the file is gone"]
    node = _find(module, seam.name)
    if node is None:
        return ["it is gone"]
    found: list[str] = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
        first = [name for name in given if name not in ("self", "cls")]
        if tuple(first[: len(seam.parameters)]) != seam.parameters:
            found.append(f"its parameters are {first}, not {list(seam.parameters)}")
        every = {*given, *(arg.arg for arg in node.args.kwonlyargs)}
        found += [f"it has no parameter {name!r}" for name in seam.keywords if name not in every]
        called = _called(node)
        for wanted in seam.calls:
            if wanted not in called:
                found.append(
                    f"it does not call {wanted}, at least not in the order of {seam.calls}"
                )
                break
            called = called[called.index(wanted) + 1 :]
    members = _members(node)
    found += [f"there is no {name!r} in it" for name in seam.has if name not in members]
    return found


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def _find(module: ast.Module, name: str) -> ast.AST | None:
    node: ast.AST | None = module
    for part in name.split(".") if name else ():
        body = getattr(node, "body", [])
        node = next((item for item in _flat(body) if getattr(item, "name", None) == part), None)
        if node is None:
            return None
    return node


def _flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body, those below `if` and `try` too."""
    found: list[ast.stmt] = []
    for item in body:
        found.append(item)
        if isinstance(item, ast.If | ast.Try):
            found += _flat(item.body) + _flat(item.orelse)
    return found


def _called(function: ast.AST) -> list[str]:
    """What is called, in the order of the text: of `a.b.c()` it is "a.b.c", "b.c" and "c"."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.func.end_lineno or 0, call.func.end_col_offset or 0))
    names: list[str] = []
    for call in calls:
        parts = ast.unparse(call.func).split(".")
        names += [".".join(parts[i:]) for i in range(len(parts))]
    return names


def _members(node: ast.AST) -> set[str]:
    """Names that a class or a module defines; of a class also what its methods assign."""
    names: set[str] = set()
    for item in _flat(getattr(node, "body", [])):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(item.name)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
        elif isinstance(item, ast.Assign):
            names |= {target.id for target in item.targets if isinstance(target, ast.Name)}
        elif isinstance(item, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in item.names}
    if isinstance(node, ast.ClassDef):
        for item in ast.walk(node):
            if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store):
                names |= {item.attr} if ast.unparse(item.value) == "self" else set()
    return names
