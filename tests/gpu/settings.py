"""What a run is given, as every part sees it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from guard.errors import ModelError
from guard.models.sources import resolve_source
from tests.gpu.report import Figure

Add = Callable[[Figure], None]
"""Takes each figure as soon as it is measured: those of a part that runs out of time are kept."""


class Skipped(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Settings:
    """`language`, `images` and `encoder` are models by name or folder; None for the language model
    takes one of random weights. `image_guards` is a folder of guards for the image model. `smoke`
    measures as little as shows that a part works; `workers` engines start at once."""

    device: str
    smoke: bool
    workers: int
    language: str | None
    images: str
    image_guards: str
    encoder: str
    work: str
    """A folder for what parts write."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def speed(self, target: float) -> float | None:
        """The target of a figure that takes time to measure: a smoke run, of seconds, has none."""
        return None if self.smoke else target

    def folder(self, name: str) -> Path:
        """A folder of that name to write to, which may be there from an earlier run."""
        path = Path(self.work) / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Settings:
        return cls(**json.loads(path.read_text("utf-8")))


def require_packages(*names: str) -> None:
    """Raise Skipped unless all are installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")


def required_model(source: str, option: str) -> str:
    """The folder of a model. Raises Skipped where it is not there; no hub is asked."""
    try:
        found = resolve_source(source)
    except ModelError as error:
        raise Skipped(f"{error}, or give {option} FOLDER") from error
    if not Path(found).is_dir():
        raise Skipped(f"{source} is no folder: give {option} FOLDER")
    return found
