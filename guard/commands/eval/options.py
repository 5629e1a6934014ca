"""Options that the suites of `guard eval` have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from guard.config.checks import NO_POLICY
from guard.config.schema import Config, ModelConfig
from guard.errors import DataError, UnknownModel

if TYPE_CHECKING:
    from guard.evaluation.images.judge import Judges
    from guard.evaluation.images.suite import ImageSuite

SuiteFile = Annotated[Path, typer.Argument(help="The suite file.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Methods = Annotated[
    str | None, typer.Option(help="Methods to run, separated by commas; all if left out.")
]
Concepts = Annotated[
    str | None, typer.Option(help="Concepts to evaluate, separated by commas; all if left out.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the report; the suite's folder if left out.")
]
Number = Annotated[
    int | None,
    typer.Option("--images", "--pictures", min=1, help="Images of each concept and kind."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]

# of suites that measure one policy of a language model
Policy = Annotated[
    str | None, typer.Option(help="The policy to measure; the file's default if left out.")
]
MeasuredModel = Annotated[
    str | None, typer.Option(help="A configured model; the first if left out.")
]
DataOut = Annotated[Path | None, typer.Option(help="Folder for the report; DATA if left out.")]

S = TypeVar("S", bound="ImageSuite")
V = TypeVar("V")


@dataclass(frozen=True)
class SuiteOptions:
    """The options of one run of a suite."""

    suite: Path
    config: Path
    methods: str | None
    concepts: str | None
    images: int | None
    steps: int | None
    out: Path | None
    as_json: bool

    @property
    def name(self) -> str:
        """The suite's name, with which all files that are written begin."""
        return self.suite.stem

    @property
    def folder(self) -> Path:
        """Where files are written."""
        return self.out or self.suite.parent

    def applied_to(self, suite: S, limit: str = "images") -> S:
        """The suite with the options in place; `limit` is the field that --images sets."""
        methods = selected(self.methods, suite.methods)
        changes: dict[str, Any] = {
            limit: self.images,
            "steps": self.steps,
            "methods": methods,
            "ours": suite.ours if suite.ours in methods else next(iter(methods)),
        }
        return suite.model_copy(update={k: v for k, v in changes.items() if v is not None})

    def selected_concepts(self, known: Iterable[str]) -> set[str]:
        """The concepts to evaluate. Raises DataError for an unknown one."""
        return {*selected(self.concepts, dict.fromkeys(known))}


def selected(names: str | None, known: Mapping[str, V]) -> dict[str, V]:
    """The entries of `known` with these names, separated by commas; all with None.

    Raises DataError for an unknown name.
    """
    if names is None:
        return dict(known)
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(f"no {', '.join(unknown)}: there is {', '.join(known)}")
    return {name: known[name] for name in wanted}


def load_judges(suite: ImageSuite) -> Judges:
    """The judges of a suite. Raises DataError for a file that is no judge."""
    from guard.evaluation.images.judge import Judge, Judges

    second = Judge(suite.second_opinion) if suite.second_opinion else None
    return Judges(Judge(suite.judge), second)


def measured_policy(settings: Config, policy: str | None) -> str:
    """The name of the policy to measure, the file's default for None. Raises DataError for the one
    without guards, and UnknownPolicy."""
    chosen = policy or settings.server.default_policy
    if chosen == NO_POLICY:
        raise DataError(f"policy {NO_POLICY!r} has no guards to measure: give --policy")
    settings.policy(chosen)
    return chosen


def configured_model(settings: Config, model: str | None, config: Path) -> ModelConfig:
    """The entry of a configured model, the first for None. Raises UnknownModel."""
    served = {entry.name: entry for entry in settings.models}
    if not served or (model is not None and model not in served):
        raise UnknownModel(f"no model {model!r}: {config} has {', '.join(served) or 'none'}")
    return served[model] if model else settings.models[0]
