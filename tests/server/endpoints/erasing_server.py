"""A server with guards that write to the latents of a tiny pipeline: all of it real but the
weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from guard.artifact import Artifact
from guard.audit import AuditLog
from guard.config.schema import load_config
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services.build import build_services
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import irece
from steering.methods.fitted import FittedGuard
from tests.server.live_server import serve_app
from tests.server.tiny_pipeline import save_eraser, save_guards, save_pipeline, save_screen

STEPS, SEED, PROMPT = 3, 1, "a cat"
POLICIES = {
    "perturb": 'guards = ["break"]\naction = "perturb"',
    "shown": 'guards = ["break", "silent"]\naction = "perturb"\ndebug = true',
    "observe": 'guards = ["break"]\naction = "observe"\ndebug = true',
    "flag": 'guards = ["break"]\naction = "flag"',
    "block": 'guards = ["break"]\naction = "block"',
    "stubborn": 'guards = ["stubborn"]\naction = "perturb"\ndebug = true',
    "replace": (
        'guards = ["stubborn"]\naction = "perturb"\nfallback = "replace"\nreplacement = "a dog"'
    ),
    "silent": 'guards = ["silent"]\naction = "perturb"',
    "broken": 'guards = ["elsewhere"]\naction = "perturb"',
    "all": 'guards = ["knife", "break", "look"]\naction = "perturb"',
}


def score_of(folder: Path, family: Family) -> float:
    """What the guard says of the bare image."""
    artifact = Artifact.load(folder / "break.safetensors")
    own = irece.stack([FittedGuard("g", artifact.tensors, artifact.meta.settings)])
    engine = DiffusionEngine(family, ImageStacks(latents=(own,)), capacity=1)
    row = RowGuard("g", -1e9, 1.0, acts=False)
    engine.start([ImageStart(PROMPT, seed=SEED, steps=STEPS, guidance=3.0, guards=[row])])
    while not engine.step():
        pass
    score = engine.readings(0)["g"].score
    engine.close()
    return score


def write_config(folder: Path) -> Path:
    family = save_pipeline(folder / "model")
    save_guards(folder, family)
    save_screen(folder / "look.safetensors", family)
    save_eraser(folder / "break.safetensors", family)
    save_eraser(folder / "elsewhere.safetensors", family, fitted_on="0" * 64)
    score = score_of(folder, family)
    lines = ["[server]", "max_batch = 4", 'audit_log = "audit.jsonl"', "[[models]]"]
    lines += ['name = "tiny"', 'source = "./model"', 'engine = "diffusers"', 'device = "cpu"']
    lines += [f"steps = {STEPS}", "guidance_scale = 3.0"]
    for name, artifact, threshold in (
        ("break", "break", score - 0.1),
        ("stubborn", "break", -1e6),
        ("silent", "break", 1e6),
        ("look", "look", 1e6),
        ("elsewhere", "elsewhere", 0.0),
        ("knife", "knife", 1e6),
    ):
        lines += ["[[guards]]", f'name = "{name}"', f'artifact = "{artifact}.safetensors"']
        lines.append(f"threshold = {threshold!r}")
    for name, policy in POLICIES.items():
        lines += [f"[policies.{name}]", policy]
    (folder / "config.toml").write_text("\n".join(lines) + "\n")
    return folder / "config.toml"


@dataclass
class Site:
    url: str
    folder: Path
    service: Any

    def post(self, policy: str = "none", *, debug: bool | None = None, **more: Any) -> Any:
        guard = {"policy": policy} | ({} if debug is None else {"debug": debug})
        body = {"model": "tiny", "prompt": PROMPT, "seed": SEED, "guard": guard} | more
        return httpx.post(f"{self.url}/v1/images/generations", json=body, timeout=30)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


@contextmanager
def erasing(folder: Path) -> Iterator[Site]:
    """The server of `write_config`, in `folder`."""
    config = load_config(write_config(folder))
    metrics = Metrics()
    assert config.server.audit_log is not None
    with AuditLog(config.server.audit_log) as audit:
        services = build_services(config, Recorder(metrics.verdicts, audit))
        app = create_app(config, services, metrics=metrics)
        with serve_app(app, services) as (url, _):
            yield Site(url, folder, services["tiny"])
