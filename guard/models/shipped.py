"""Files that ship beside the code: the configuration of the demo, its guards, trained weights.

In a clone they are where the repository has them; a wheel puts them under `share/inference-guard`
of the environment, in the same order.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

_DISTRIBUTION = "inference-guard"
_CONFIG = "config.toml"
_INSTALLED = f"share/{_DISTRIBUTION}/{_CONFIG}"


def shipped(name: str) -> Path:
    """The path of a file or a folder by its path in the repository; it need not be there."""
    return _root() / name


@cache
def _root() -> Path:
    clone = Path(__file__).parents[2]
    if (clone / _CONFIG).is_file() and (clone / "examples").is_dir():
        return clone
    try:
        listed = files(_DISTRIBUTION) or []
    except PackageNotFoundError:  # code without its metadata
        listed = []
    found = (Path(str(file.locate())) for file in listed if str(file).endswith(_INSTALLED))
    return next((path.resolve().parent for path in found), clone)
