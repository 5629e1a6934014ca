"""The table of methods, and what other packages bring to it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint

import pytest

import steering.methods
from steering.methods import GROUP, METHODS, method_named
from tests.strangers import directional_ablation


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose method loads, and one that does not."""
    module = directional_ablation.__name__
    points = [
        EntryPoint("broken", "no_such_package:METHOD", GROUP),
        EntryPoint("ablation", f"{module}:METHOD", GROUP),
    ]
    monkeypatch.setattr(
        steering.methods, "entry_points", lambda group: points if group == GROUP else []
    )
    monkeypatch.setattr(steering.methods, "METHODS", dict(METHODS))
    steering.methods._installed.cache_clear()
    yield
    steering.methods._installed.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_package_that_does_not_load_leaves_the_methods_of_others() -> None:
    own = directional_ablation.METHOD
    assert method_named(own.name) is own
    assert method_named("steer").kind == "language"
    with pytest.raises(ValueError, match="unknown method 'x'.*'broken'.*no_such_package"):
        method_named("x")


def test_every_entry_names_a_function_that_exists() -> None:
    for method in METHODS.values():
        module, _, name = str(method.stack).partition(":")
        assert callable(getattr(import_module(module), name)), method.name
