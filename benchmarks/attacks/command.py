"""What the attack commands share: arguments, going on after a stop, the file that is played."""

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
from benchmarks.attacks.search import Found
from benchmarks.attacks.target import Target

Search = Callable[[str, int], Iterator[Found]]
"""`search(concept, number)`: the search for the prompt of that number, step by step."""


def parser(description: str | None, efforts: str) -> argparse.ArgumentParser:
    """With the arguments that all attacks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", default="emoji", help="an added model or a pipeline's folder")
    made.add_argument("--bf16", action="store_true", help="compute the denoiser in bfloat16")
    made.add_argument("--out", type=Path, required=True, help="JSON Lines, gone on with")
    made.add_argument("--concepts", default=",".join(concepts.CONCEPTS), help="with commas")
    made.add_argument("--prompts", type=int, default=5, help="prompts searched for each concept")
    made.add_argument("--efforts", default=efforts, help="steps after which the prompt is kept")
    made.add_argument("--seeds", type=int, default=8, help="images of the last effort's prompt")
    made.add_argument("--curve-seeds", type=int, default=2, help="images of the earlier ones")
    made.add_argument("--minutes", type=float, default=1e9, help="start no search after these")
    return made


def load(arguments: argparse.Namespace) -> Target:
    """The pipeline of an added model or a folder."""
    from guard.models.sources import resolve_source
    from steering.engines.diffusion.loading import load_pipeline

    return Target(load_pipeline(resolve_source(arguments.model)), bf16=arguments.bf16)


def run(
    attack: str, arguments: argparse.Namespace, target: Target, search: Search, against: str = ""
) -> None:
    """Search for every prompt that is not in the file yet, and append each when it is found."""
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["concept"], row["how"]) for row in _rows(out)}
    wanted = [
        (concept, number)
        for number in range(arguments.prompts)
        for concept in arguments.concepts.split(",")
        if (concept, f"prompt {number}") not in done
    ]
    efforts = sorted({int(effort) for effort in arguments.efforts.split(",")})
    began = time.monotonic()
    for concept, number in track(wanted, attack):
        if time.monotonic() - began > arguments.minutes * 60:
            print(f"{attack}: out of time, {len(wanted)} searches were left at the start")
            return
        kept = {each.effort: each for each in search(concept, number) if each.effort in efforts}
        rows = [
            {
                "kind": attack,
                "concept": concept,
                "how": f"prompt {number}",
                "effort": effort,
                "prompt": target.text(found.content.tolist()),
                "against": against,
            }
            for effort, found in sorted(kept.items())
            for _ in range(arguments.seeds if effort == efforts[-1] else arguments.curve_seeds)
        ]
        with out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def vocabulary(target: Target, forbidden: Iterable[str]) -> torch.Tensor:
    """The token ids that a search may use: whole words, none that holds a forbidden one or begins
    like it, as its other forms do ("knives")."""
    banned = tuple(forbidden)

    beginnings = tuple(ban[: max(3, len(ban) - 2)] for ban in banned)

    def allowed(word: str) -> bool:
        return not word.startswith(beginnings) and not any(ban in word for ban in banned)

    return torch.tensor([number for number, word in target.words if allowed(word.lower())])


def drawn(allowed: torch.Tensor, size: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random sequences of allowed tokens."""
    return allowed[torch.randint(len(allowed), tuple(size), generator=generator)]


def seed(concept: str, number: int) -> int:
    """The fixed seed of one search."""
    return 1000 * concepts.CONCEPTS.index(concept) + number


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line]
