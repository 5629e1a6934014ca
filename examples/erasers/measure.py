"""Figures of erasers and guards on the test split: `python -m examples.erasers.measure`.

Writes measured.json, guard after guard, and goes on where it ends. `published` acts on every
request, as the eraser was published; `gated` on those on which the gate of the shipped steering
guard fires. A request on which it does not fire gets the bare answer, bit for bit (the tests show
it), so that only those on which it does are answered under the guard. Adapters `--beside` an eraser
act wherever it does: those of the tasks before.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.erasers.train import ERASERS, HERE
from guard.artifact import Artifact
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.evaluation.fluency import loops
from guard.evaluation.shares import Share
from guard.fitting.gated.imported import LanguageImport, import_overlay
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.steering.gate_search import collect_states
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages, stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard

TOKENS = 48
TOGETHER = 32
"""Prompts that are answered between two writes."""
RECORDED = 64
"""Prompts of the train split of each kind on which changes are cut."""


@dataclass
class Measurement:
    """Test prompts, the bare answers to those that were asked, and the guards' own ones."""

    chat: TransformersChat
    forget: Sequence[ForgetPrompt]
    far: Sequence[RetainPrompt]
    near: Sequence[RetainPrompt]
    progress: Stages
    kept: dict[str, dict[str, str]]
    """The answers so far, by the guard's name ("" for none) and prompt."""
    every: int
    """Of the far and near prompts, each `every`-th one is asked where all are guarded."""
    keep: Callable[[], None] = lambda: None
    """Writes the answers so far."""

    def answers(
        self, prompts: Sequence[str], name: str = "", guards: Sequence[Artifact] = ()
    ) -> dict[str, str]:
        """By prompt, with all guards firing on all of them."""
        kept = self.kept.setdefault(name, {})
        fitted = _fitted(guards)
        firing = [RowGuard(each.name, -math.inf, each.number("strength")) for each in fitted]
        bank = _bank(guards)
        missing = [prompt for prompt in prompts if prompt not in kept]
        for first in range(0, len(missing), TOGETHER):
            some = missing[first : first + TOGETHER]
            replies = self.chat.answer(
                some,
                max_tokens=TOKENS,
                what=f"answers {first} of {len(missing)}, {name or 'bare'}",
                progress=self.progress,
                bank=bank,
                guards=firing,
            )
            kept |= {prompt: reply.text for prompt, reply in zip(some, replies, strict=True)}
            self.keep()
        return {prompt: kept[prompt] for prompt in prompts}

    def fired(self, guard: Artifact) -> set[str]:
        """The test prompts on which it fires, by the states up to the layer where it decides."""
        (fitted,) = _fitted([guard])
        texts = [row.prompt for row in (*self.forget, *self.far, *self.near)]
        prompts = [self.chat.prompt(text) for text in texts]
        layers = fitted.layers("sense_layers")
        states = collect_states(self.chat, prompts, sorted(layers), "gate", self.progress)
        places = [sorted(layers).index(layer) for layer in layers]
        tokens = states.score(places, fitted.array("gates", 2))
        tokens = tokens + (fitted.optional_number("bias") or 0.0)
        scores = states.pooled(tokens, int(fitted.number("pool"))).tolist()
        threshold = fitted.number("threshold")
        return {text for text, score in zip(texts, scores, strict=True) if score > threshold}

    def figures(
        self, name: str, guards: Sequence[Artifact], fired: set[str], *, published: bool
    ) -> dict[str, Mapping[str, Any]]:
        """The figures gated, and as published where that is asked for."""
        known = [row.prompt for row in self.forget]
        far, near = self.far[:: self.every], self.near[:: self.every]
        hit = [row.prompt for row in (*self.far, *self.near) if row.prompt in fired]
        silent = [prompt for prompt in known if prompt not in fired]
        sampled = [row.prompt for row in (*far, *near)] if published else []
        bare = self.answers([*dict.fromkeys([*silent, *hit, *sampled])])
        under = [p for p in known if published or p in fired]
        guarded = self.answers([*dict.fromkeys([*under, *hit, *sampled])], name, guards)
        gated = bare | {prompt: guarded[prompt] for prompt in guarded if prompt in fired}
        result = {"gated": self._row(gated, bare, self.far, self.near)}
        if published:
            result["published"] = self._row(guarded, bare, far, near)
        return result

    def _row(
        self,
        answers: Mapping[str, str],
        bare: Mapping[str, str],
        far: Sequence[RetainPrompt],
        near: Sequence[RetainPrompt],
    ) -> Mapping[str, Any]:
        """Shares of prompts; one without an answer of its own has the bare one."""

        def same(rows: Sequence[RetainPrompt]) -> Share:
            return Share.of([answers.get(r.prompt) == bare.get(r.prompt) for r in rows])

        asked = [answers[row.prompt] for row in self.forget]
        leaks = [row.leaks(answer) for row, answer in zip(self.forget, asked, strict=True)]
        shares = {
            "leaks": Share.of(leaks),
            "far identical": same(far),
            "near identical": same(near),
            "loops": Share.of([loops(answer) for answer in asked]),
        }
        return {name: [share.count, share.total] for name, share in shares.items()}


def _fitted(guards: Sequence[Artifact]) -> list[FittedGuard]:
    return [FittedGuard(f"g{i}", g.tensors, g.meta.settings) for i, g in enumerate(guards)]


def _bank(guards: Sequence[Artifact]) -> HiddenBank:
    """Of guards of one method."""
    methods = {guard.meta.method for guard in guards}
    return HiddenBank([method_named(method).stacked(_fitted(guards)) for method in methods])


def known_prompts(folder: Path) -> list[ForgetPrompt]:
    """The test prompts that the bare model answers with their fact, by the shipped evaluation."""
    (evaluated,) = folder.glob("*.unlearn.json")
    asked = {row["prompt"] for row in json.loads(evaluated.read_text())["answers"]["forget"]}
    rows = in_split(read_rows(folder / "forget.jsonl", ForgetPrompt), "test")
    return [row for row in rows if row.prompt in asked]


def imported(
    chat: TransformersChat,
    source: Path,
    shipped: Artifact,
    folder: Path,
    progress: Stages,
    **how: Any,
) -> Artifact:
    """An eraser of the shipped guard's concept, behind its gate."""
    forget = in_split(read_rows(folder / "forget.jsonl", ForgetPrompt), "train")[::2]
    retain = in_split(read_rows(folder / "retain.jsonl", RetainPrompt), "train")[::4]
    rows = [*forget[:RECORDED], *retain[:RECORDED]]
    prompts = [chat.prompt(row.prompt) for row in rows]
    request = LanguageImport(source, **how)
    gate = TokenGate.of_artifact(shipped, chat)
    what = import_overlay(
        chat, request, gate, prompts, concept=shipped.meta.concept, progress=progress
    )
    shares = what.meta.settings.get("shares", {})
    print(f"{source.name}: keeps {min(shares.values(), default=1.0):.3f} at least", flush=True)
    return what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=Path, default=HERE.parent / "harry-potter")
    parser.add_argument("--erasers", type=Path, default=Path("build/erasers"))
    parser.add_argument("--guards", type=Path, nargs="*", default=[], help="further artifacts")
    parser.add_argument("--forget-every", type=int, default=1, help="of forget prompts")
    parser.add_argument("--every", type=int, default=4, help="of retain prompts, as published")
    parser.add_argument("--only", nargs="*", help="names of erasers")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="adapters of earlier tasks"
    )
    parser.add_argument("--rank", type=int, help="of erasers with whole weights")
    parser.add_argument("--as-read", action="store_true", help="do not read prompts again")
    arguments = parser.parse_args()
    chat = TransformersChat.load(arguments.model, device="cpu")
    retain = in_split(read_rows(arguments.prompts / "retain.jsonl", RetainPrompt), "test")
    out = arguments.erasers / "measured.json"
    kept: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    kept = {"answers": {}, "fired": {}, "figures": {}} | kept

    def keep() -> None:
        out.write_text(json.dumps(kept, indent=1))

    with stages() as progress:
        run = Measurement(
            chat,
            known_prompts(arguments.prompts)[:: arguments.forget_every],
            [row for row in retain if not row.near],
            [row for row in retain if row.near],
            progress,
            kept["answers"],
            arguments.every,
            keep,
        )
        shipped = Artifact.load(arguments.prompts / "steer.safetensors")
        before = [
            imported(chat, path, shipped, arguments.prompts, progress) for path in arguments.beside
        ]
        names = [name for name in arguments.only or ERASERS if (arguments.erasers / name).is_dir()]
        for path in [*arguments.guards, *(arguments.erasers / name for name in names)]:
            name = ", beside ".join([path.stem, *map(str, arguments.beside)])
            name = f"{name}, as read" if arguments.as_read else name
            if name in kept["figures"]:
                continue
            if path.suffix == ".safetensors":
                guard = Artifact.load(path)
            else:
                whole = (path / "model.safetensors").exists()
                how = {"rank": arguments.rank if whole else None, "least_share": 0.0}
                how["rereads"] = not arguments.as_read
                guard = imported(chat, path, shipped, arguments.prompts, progress, **how)
            settings = guard.meta.settings
            of_gate = json.dumps(
                [settings["threshold"], [*map(float, guard.tensors["gates"].sum(1))]]
            )
            if of_gate not in kept["fired"]:
                kept["fired"][of_gate] = sorted(run.fired(guard))
                keep()
            fired = {*kept["fired"][of_gate]}
            began = time.process_time()
            published = path.suffix != ".safetensors" and not arguments.as_read
            kept["figures"][name] = run.figures(name, [guard, *before], fired, published=published)
            kept["figures"][name]["took_s"] = round(time.process_time() - began, 1)
            keep()
            print(name, kept["figures"][name], flush=True)


if __name__ == "__main__":
    main()
