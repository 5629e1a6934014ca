"""What imports what, read from the sources: also imports within functions and for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "guard", "steering", "classifiers")

Graph = Mapping[str, set[str]]


def sources(root: Path) -> dict[str, ast.Module]:
    """The syntax trees of the packages in `root`, by module."""
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    return {module_of(file.relative_to(root)): ast.parse(file.read_text("utf-8")) for file in files}


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every imported (module, name); the name is empty where a module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions, and without what is for types alone."""

    class Outer(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None: ...

        def visit_If(self, node: ast.If) -> ast.AST | None:
            for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if for_types else self.generic_visit(node)

    outer = Outer().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(outer, ast.Module)
    return outer


def import_graph(modules: Mapping[str, ast.Module]) -> Graph:
    """The modules that each module imports: `from a import b` is one of `a.b` where that is one."""
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        names = [(parent, f"{parent}.{name}") for parent, name in imported_names(tree)]
        targets = {full if full in modules else parent for parent, full in names}
        graph[module] = targets & modules.keys()
    return graph


def cycle_of(graph: Graph) -> list[str]:
    """The modules of an import cycle; none where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def rooms(graph: Graph, package: str) -> Graph:
    """The graph between the modules and folders directly below `package`."""
    inside = {
        module: ".".join(module.split(".")[:2])
        for module in graph
        if module.startswith(f"{package}.")
    }
    between: dict[str, set[str]] = {room: set() for room in inside.values()}
    for module, room in inside.items():
        between[room] |= {inside[target] for target in graph[module] if target in inside} - {room}
    return between


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    return sources(ROOT)


def test_no_module_takes_part_in_an_import_cycle(modules: dict[str, ast.Module]) -> None:
    assert cycle_of(import_graph(modules)) == []


def test_no_room_of_guard_takes_part_in_an_import_cycle(modules: dict[str, ast.Module]) -> None:
    assert cycle_of(rooms(import_graph(modules), "guard")) == []


def test_evaluation_uses_no_private_name_of_an_engine(modules: dict[str, ast.Module]) -> None:
    private = [
        (module, f"{parent}.{name}")
        for module, tree in modules.items()
        if module.startswith("guard.evaluation.")
        for parent, name in imported_names(tree)
        if parent.startswith("steering.engines.")
        if any(part.startswith("_") for part in [*parent.split("."), name])
    ]
    assert private == []


@pytest.mark.parametrize(
    "start", ["server.app", "server.lifecycle.run", "server.services.build", "server.proxy.run"]
)
def test_a_server_starts_without_what_only_fits_need(
    modules: dict[str, ast.Module], start: str
) -> None:
    outer = {module: at_import(tree) for module, tree in modules.items()}
    graph, seen, left = import_graph(outer), set[str](), [start]
    while left:
        if (module := left.pop()) not in seen:
            seen.add(module)
            left += graph[module]
    fits = {"scipy", "sklearn", "matplotlib"}
    needed = {
        (module, parent)
        for module in seen
        for parent, _ in imported_names(outer[module])
        if parent.partition(".")[0] in fits
    }
    assert needed == set()


def test_a_cycle_through_a_function_or_a_type_is_found(tmp_path: Path) -> None:
    for name, text in {
        "__init__": "",
        "a": "def late():\n    from guard.b import name\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from guard import c\n",
        "c": "import guard.a\n",
        "d": "import guard.a\n",
    }.items():
        (tmp_path / "guard").mkdir(exist_ok=True)
        (tmp_path / "guard" / f"{name}.py").write_text(text, "utf-8")
    assert set(cycle_of(import_graph(sources(tmp_path)))) == {"guard.a", "guard.b", "guard.c"}
