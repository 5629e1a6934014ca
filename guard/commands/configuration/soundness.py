"""What `guard check` finds beyond the file itself: guards, sources and policies that cannot act.

A server finds the same when it loads models and guards. Here nothing large is loaded: torch only to
try a guard's tensors, of models only the files that describe them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guard.artifact import Artifact
from guard.config.kinds import Kind, kind_of
from guard.config.schema import Config, GuardConfig, ModelConfig
from guard.config.setting_checks import recheck_of
from guard.errors import ArtifactError, ModelError
from guard.models.recipes import RECIPES
from guard.models.sources import GGUF, added_model, resolve_source
from guard.plans.image_screens import encoder_card
from guard.plans.text_encoders import encoder_for
from steering.methods import SCREENS, method_named
from steering.methods.fitted import FittedGuard

_DEPTH, _WIDTH = ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")
_MAX_WEIGHTS_BYTES = 4 * 2**30


@dataclass
class Findings:
    """`problems` make the configuration unusable, `warnings` may be as they should."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def findings(config: Config) -> Findings:
    """Everything that would keep a guard or a policy of the configuration from acting."""
    found = Findings()
    artifacts: dict[str, Artifact] = {}
    for index, setting in enumerate(config.guards):
        try:
            artifacts[setting.name] = artifact = Artifact.load(setting.artifact)
            _try(setting, artifact)
        except (ArtifactError, ValueError) as error:
            found.problems.append(f"guards[{index}] ({setting.name}): {error}")
    folders = {m.name: _folder(i, m, found) for i, m in enumerate(config.models)}
    _compare(config, artifacts, folders, found)
    kinds: dict[str, Kind | None] = {name: kind_of(each.meta) for name, each in artifacts.items()}
    heads = [artifacts[name] for name, kind in kinds.items() if kind == "text"]
    if heads and added_model(encoder := encoder_for(heads)) is None:
        found.warnings.append(
            f"screens that are classifiers need the model {encoder!r}, which is not there yet: "
            f"run `guard models add {encoder}`"
        )
    _images(config, artifacts, found)
    kinds |= {entry.name: "text" for entry in config.patterns}
    if config.models:
        _policies_of_models(config, kinds, found)
        if config.erasures.folder is not None and not any(map(_can_forget, config.models)):
            found.warnings.append(
                "erasures.folder: no model can forget: only language models of "
                'engine = "transformers" can while they are served'
            )
    if config.upstreams:
        _policies_of_proxy(config, kinds, found)
    return found


def _images(config: Config, artifacts: Mapping[str, Artifact], found: Findings) -> None:
    """What screens of images need beside their artifacts."""
    for name, artifact in artifacts.items():
        if kind_of(artifact.meta) != "pixels":
            continue
        try:
            card = encoder_card(artifact.meta.model.name)
            artifact.require_model(card.fingerprint, served=card.name)
        except ModelError as error:
            found.warnings.append(f"{name}: {error}")
        except ArtifactError as error:
            found.problems.append(f"{name}: {error}")
    readers = [name for name, policy in config.policies.items() if policy.screen.ocr]
    if readers and find_spec("rapidocr") is None:
        found.warnings.append(
            f"policies.{readers[0]}.screen.ocr: needs RapidOCR, which is not installed here: "
            "pip install 'inference-guard[ocr]'"
        )


def _try(setting: GuardConfig, artifact: Artifact) -> None:
    """Raise ValueError or ArtifactError for a guard that a server would not load."""
    meta = artifact.meta
    method = method_named(meta.method)
    guard = FittedGuard(setting.name, artifact.tensors, meta.settings)
    method.require_in_range(meta.settings, setting.name)
    if method.kind in SCREENS or find_spec("torch") is not None:
        method.stacked([guard])
    if setting.threshold is None:
        guard.number("threshold")
    if setting.strength is None and method.action != "block":
        guard.number("strength")
    recheck_of(setting.recheck, guard.optional_number("recheck"), setting.threshold)


def _folder(index: int, model: ModelConfig, found: Findings) -> Path | None:
    """The folder of a model's files; None where they are not here."""
    place = f"models[{index}].source"
    try:
        resolved = resolve_source(model.source)
    except ModelError as error:
        is_later = model.source in RECIPES
        (found.warnings if is_later else found.problems).append(f"{place}: {error}")
        return None
    folder = Path(resolved)
    if folder.suffix == GGUF:
        _open_gguf(place, folder, found)
        return None
    if not folder.is_dir():
        found.warnings.append(
            f"{place}: {model.source!r} is taken for a name on the hub, where it was not looked up"
        )
        return None
    described = "model_index.json" if model.kind == "images" else "config.json"
    if not (folder / described).is_file():
        found.problems.append(
            f'{place}: {folder} has no {described}, which engine = "{model.engine}" needs'
        )
        return None
    return folder


def _open_gguf(place: str, path: Path, found: Findings) -> None:
    """Find a GGUF file that a server would not load."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return
    from steering.engines.transformers.loading.gguf import GgufFile

    try:
        GgufFile.open(path)
    except (OSError, ValueError) as error:
        found.problems.append(f"{place}: {path} cannot be loaded: {error}")


def _compare(
    config: Config,
    artifacts: Mapping[str, Artifact],
    folders: Mapping[str, Path | None],
    found: Findings,
) -> None:
    """Find guards of language models that were fitted on others than those here."""
    models = [model for model in config.models if model.kind == "language"]
    sizes = {model.name: _size(folders[model.name]) for model in models}
    prints = {model.name: _fingerprint(folders[model.name]) for model in models}
    for name, artifact in artifacts.items():
        fitted = artifact.meta.model
        if not models or kind_of(artifact.meta) != "language":
            continue
        shape = (fitted.layers, fitted.width)
        others = {served for served, size in sizes.items() if size not in {None, shape}}
        if len(others) == len(models):
            found.problems.append(
                f"guard {name}: was fitted on {fitted.name!r}, of {shape[0]} layers and width "
                f"{shape[1]}, and fits no model of this configuration: fit it on one of them"
            )
            continue
        if any(prints[served] in {None, fitted.fingerprint} for served in sizes.keys() - others):
            continue
        found.warnings.append(
            f"guard {name}: was fitted on {fitted.name!r} ({fitted.fingerprint[:12]}), and no "
            "model of this configuration has its fingerprint: a server will refuse it; for a "
            "quantised, fine-tuned or newer copy of that model run `guard rebind`"
        )


def _size(folder: Path | None) -> tuple[int, int] | None:
    """Layers and width of a language model, where its description says so."""
    if folder is None:
        return None
    try:
        about: Any = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict):
        return None
    depth, width = (next((about[k] for k in keys if k in about), None) for keys in (_DEPTH, _WIDTH))
    return (depth, width) if isinstance(depth, int) and isinstance(width, int) else None


def _fingerprint(folder: Path | None) -> str | None:
    """The fingerprint of a model whose weights are small enough to be read here."""
    if folder is None or find_spec("torch") is None:
        return None
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not 0 < size <= _MAX_WEIGHTS_BYTES:
        return None
    from steering.fingerprint import checkpoint_fingerprint

    try:
        return checkpoint_fingerprint(folder)
    except ValueError:
        return None


def _can_forget(model: ModelConfig) -> bool:
    return model.engine == "transformers"


def _policies_of_models(config: Config, kinds: Mapping[str, Kind | None], found: Findings) -> None:
    served: set[Kind | None] = {model.kind for model in config.models}
    for name, policy in config.policies.items():
        if not policy.guards and config.erasures.folder is not None:
            continue  # erasures will fill it
        if (served | SCREENS) & _kinds(config, name, kinds):
            continue
        found.warnings.append(
            f"policies.{name}: none of its guards is for a model of this configuration"
        )
    defaults = {
        model.default_policy or config.server.default_policy: model.kind for model in config.models
    }
    if not any(
        not config.policy(name).guards or (SCREENS | {kind}) & _kinds(config, name, kinds)
        for name, kind in defaults.items()
    ):
        found.problems.append(
            f"server.default_policy: no guard of {config.server.default_policy!r} is for a model "
            "of this configuration, which would refuse every request that names no policy"
        )


def _policies_of_proxy(config: Config, kinds: Mapping[str, Kind | None], found: Findings) -> None:
    default = config.proxy.default_policy or config.server.default_policy
    for name in config.policies:
        inside = [*_inside(config, name, kinds)]
        if not inside or config.delegates(name):
            continue
        text = (
            f"policies.{name}: {', '.join(inside)} act inside a model, which a proxy does not run: "
            "it refuses requests under this policy"
        )
        (found.problems if name == default else found.warnings).append(text)


def _kinds(config: Config, policy: str, kinds: Mapping[str, Kind | None]) -> set[Kind | None]:
    return {kinds.get(guard) for guard in config.policy(policy).guards}


def _inside(config: Config, policy: str, kinds: Mapping[str, Kind | None]) -> Iterator[str]:
    for guard in config.policy(policy).guards:
        if kinds.get(guard) in {"language", "images"}:
            yield guard
