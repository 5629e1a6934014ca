"""Runs of the attack commands with a tiny pipeline."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.attacks import command, white_box
from benchmarks.attacks.target import Target
from steering.engines.diffusion.families import Family


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: str) -> None:
    """Call `main` with these arguments on its command line."""
    monkeypatch.setattr(sys, "argv", ["attack", *arguments])
    main()


def run_white_box(
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
    out: Path,
    *options: str,
    artifact: Path,
    method: str,
) -> None:
    """Search against the policy knife-METHOD, which has the guard of `artifact` alone."""
    name = artifact.stem
    lines = ["[[guards]]", f'name = "{name}"', f'artifact = "{artifact}"']
    lines += [f"[policies.knife-{method}]", f'guards = ["{name}"]']
    config = out.with_name("config.toml")
    config.write_text("\n".join(lines), "utf-8")
    monkeypatch.setattr(command, "load", lambda source: Target(family.pipeline))
    policy = ("--policy", f"{{concept}}-{method}", "--method", method, "--concepts", "knife")
    run(monkeypatch, white_box.main, "--out", str(out), "--config", str(config), *policy, *options)
