"""Shared parts of the attack commands: options, resuming after a stop, the file of prompts."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.attacks import concepts
from benchmarks.attacks.target import Target
from guard.fitting.prompts.swaps import Candidate

Search = Callable[[str, int], Iterator[Candidate]]
"""`search(concept, number)` is the search for the prompt of that number, step by step."""


def option_parser(description: str | None, efforts: str) -> argparse.ArgumentParser:
    """A parser with the options of all attacks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="emoji", help="an added model or a pipeline's folder")
    parser.add_argument("--bf16", action="store_true", help="compute the denoiser in bfloat16")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines; a search resumes it")
    parser.add_argument("--concepts", default=",".join(concepts.CONCEPTS), help="with commas")
    parser.add_argument("--prompts", type=int, default=5, help="searches for each concept")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first search: others have other seeds"
    )
    parser.add_argument(
        "--efforts", default=efforts, help="steps after which the prompt is written"
    )
    parser.add_argument(
        "--seeds", type=int, default=8, help="images of the prompt of the last effort"
    )
    parser.add_argument(
        "--curve-seeds", type=int, default=2, help="images of the prompts before it"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start no search after so many")
    return parser


def load(arguments: argparse.Namespace) -> Target:
    """The pipeline of an added model or of a folder."""
    from guard.models.sources import resolve_source
    from steering.engines.diffusion.loading import load_pipeline

    return Target(load_pipeline(resolve_source(arguments.model)), bf16=arguments.bf16)


def run(
    attack: str, arguments: argparse.Namespace, target: Target, search: Search, against: str = ""
) -> None:
    """Search for every prompt that the file lacks, and append its rows when the search ends."""
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["concept"], row["how"]) for row in _rows(out)}
    missing = [
        (concept, number)
        for number in range(arguments.first, arguments.first + arguments.prompts)
        for concept in arguments.concepts.split(",")
        if (concept, f"prompt {number}") not in done
    ]
    efforts = sorted({int(effort) for effort in arguments.efforts.split(",")})
    began = time.monotonic()
    for concept, number in track(missing, attack):
        if time.monotonic() - began > arguments.minutes * 60:
            print(f"{attack}: out of time, {len(missing)} searches were left at the start")
            return
        found = {step.effort: step for step in search(concept, number) if step.effort in efforts}
        rows = [
            {
                "kind": attack,
                "concept": concept,
                "how": f"prompt {number}",
                "effort": effort,
                "prompt": target.text(candidate.content.tolist()),
                "against": against,
            }
            for effort, candidate in sorted(found.items())
            for _ in range(arguments.seeds if effort == efforts[-1] else arguments.curve_seeds)
        ]
        with out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def vocabulary(target: Target, forbidden: Iterable[str]) -> torch.Tensor:
    """The token ids that a search may use: whole words without a forbidden one or a form of it.

    A word that begins like a forbidden one counts as its form ("knives")."""
    banned = tuple(forbidden)
    stems = tuple(ban[: max(3, len(ban) - 2)] for ban in banned)

    def allowed(word: str) -> bool:
        return not word.startswith(stems) and not any(ban in word for ban in banned)

    return torch.tensor([number for number, word in target.words if allowed(word.lower())])


def random_tokens(
    allowed: torch.Tensor, size: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Random allowed tokens `[*size]`."""
    return allowed[torch.randint(len(allowed), tuple(size), generator=generator)]


def seed(concept: str, number: int) -> int:
    """The fixed seed of one search."""
    return 1000 * concepts.CONCEPTS.index(concept) + number


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line]
