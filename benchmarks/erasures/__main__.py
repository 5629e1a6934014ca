"""Guards of 24 concepts from their names: `python -m benchmarks.erasures --model smollm2`.

For each concept `guard new` with its name alone, then its questions under its own guards; in the
end innocent questions under the guards of all concepts together. Each concept's figures are kept in
the folder `--out` as soon as they are there; a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from guard.commands.guards import POLICY, config_of
from guard.config.schema import ModelConfig
from guard.data.bank.bank import topics
from guard.data.prompts import ForgetPrompt
from guard.evaluation.fluency import loops
from guard.evaluation.shares import Share
from guard.fitting.erasure.belonging import what_belongs
from guard.fitting.erasure.documents import read_documents
from guard.fitting.erasure.erase import fit_erasure
from guard.fitting.erasure.evaluation import evaluate
from guard.fitting.erasure.naming import mentions
from guard.fitting.erasure.profiling import profile_of
from guard.fitting.policy_rate import calibrated, read_scores
from guard.fitting.steering.artifacts import file_name, to_artifacts
from guard.models.chat import GuardedAnswer, TransformersChat
from guard.plans.language import LanguagePlans
from guard.reporting.progress import Stages, stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard

CONCEPTS = Path(__file__).with_name("concepts.toml")
ANSWER_TOKENS = 48
RATE = 0.005
"""Of all concepts' guards together."""


class Asked(NamedTuple):
    """The answers to one prompt."""

    bare: GuardedAnswer
    guarded: GuardedAnswer


@dataclass(frozen=True)
class Guards:
    """Loaded guards, as a policy that is served has them, and what they do on a row."""

    bank: HiddenBank
    rows: Sequence[RowGuard]

    @classmethod
    def of(cls, paths: Sequence[Path], chat: TransformersChat) -> Guards:
        """From the artifacts at `paths`."""
        config = config_of(paths, ModelConfig(name="model", source=chat.name))
        plans = LanguagePlans(config, chat.model, name="model")
        return cls(plans.bank, plans[POLICY].rows())

    def fired(self, chat: TransformersChat, prompts: Sequence[str], progress: Stages) -> list[bool]:
        """Whether any guard fires on each prompt."""
        answers = self._answers(chat, prompts, 1, "prompts", progress)
        return [answer.fired for answer in answers]

    def asked(
        self, chat: TransformersChat, prompts: Sequence[str], progress: Stages
    ) -> list[Asked]:
        """The bare answer to each prompt, and the guarded one."""
        bare = chat.answer([*prompts], max_tokens=ANSWER_TOKENS, what="bare", progress=progress)
        guarded = self._answers(chat, prompts, ANSWER_TOKENS, "guarded", progress)
        return [Asked(*pair) for pair in zip(bare, guarded, strict=True)]

    def _answers(
        self,
        chat: TransformersChat,
        prompts: Sequence[str],
        max_tokens: int,
        what: str,
        progress: Stages,
    ) -> list[GuardedAnswer]:
        return chat.answer(
            [*prompts],
            max_tokens=max_tokens,
            what=what,
            progress=progress,
            bank=self.bank,
            guards=self.rows,
        )


def leaks_of(
    rows: Sequence[ForgetPrompt], answers: Sequence[Asked], names: Sequence[str]
) -> dict[str, list[bool]]:
    """Of the rows that the bare model answers with a fact: whether the guarded answer `leaks`, and
    whether it does `unnamed`, behind a list of patterns that takes the concept's `names` out."""
    told = [
        (row, answer.guarded.text)
        for row, answer in zip(rows, answers, strict=True)
        if row.leaks(answer.bare.text)
    ]
    own = mentions(names)
    return {
        "leaks": [row.leaks(text) for row, text in told],
        "unnamed": [row.leaks(own.sub("", text)) for row, text in told],
    }


def made(
    chat: TransformersChat,
    name: str,
    concept: Mapping[str, Any],
    documents: Sequence[str],
    folder: Path,
    progress: Stages,
    *,
    is_timed: bool,
) -> dict[str, Any]:
    """Make the guards of a concept, and ask its questions. `took_s` is None without the evaluation
    that `guard new` ends in, which decides nothing here."""
    profile = profile_of(chat, progress)
    started = time.monotonic()
    belonging = what_belongs(chat, name, concept.get("aliases", ()), documents, progress)
    erasure = fit_erasure(chat, profile, belonging, progress)
    if is_timed:
        evaluate(chat, erasure, progress)
    took = round(time.monotonic() - started, 1) if is_timed else None
    paths = []
    for subject, artifact in to_artifacts(erasure.fit, chat, concept="concept/benchmark").items():
        paths.append(folder / f"{file_name(name)}-{subject}.safetensors")
        artifact.save(paths[-1])
    guards = Guards.of(paths, chat)
    indirect = [
        ForgetPrompt(prompt=each["ask"], facts=tuple(each["says"])) for each in concept["indirect"]
    ]
    prompts = [*concept["named"], *(row.prompt for row in indirect)]
    answers = guards.asked(chat, prompts, progress)
    count = len(concept["named"])
    return {
        "kind": concept["kind"],
        "known": belonging.known,
        "terms": list(belonging.terms),
        "artifacts": [str(path) for path in paths],
        "took_s": took,
        "named": [answer.guarded.fired for answer in answers[:count]],
        "indirect": [answer.guarded.fired for answer in answers[count:]],
        **leaks_of(indirect, answers[count:], belonging.names),
        "loops": [loops(answer.guarded.text) for answer in answers],
        "near": guards.fired(chat, concept["near"], progress),
    }


def together(
    chat: TransformersChat,
    concepts: Mapping[str, Any],
    done: Mapping[str, Any],
    progress: Stages,
) -> dict[str, Share]:
    """The prompts that fire with the guards of all concepts in force, as they were fitted and
    calibrated together for RATE: innocent ones, near and on topics of the bank that no fit has
    read, and questions by name. Innocent prompts that say a concept are left out."""
    guards = Guards.of([Path(path) for one in done.values() for path in one["artifacts"]], chat)
    names = [(name, *concepts[name].get("aliases", ()), *done[name]["terms"]) for name in done]
    spoken = mentions([each for group in names for each in group])
    of_bank = {
        split: [p for t in topics() if t.split == split for p in t.prompts if not spoken.search(p)]
        for split in ("validation", "test")
    }
    asked = {
        "far": of_bank["test"],
        "near": [p for name in done for p in concepts[name]["near"] if not spoken.search(p)],
        "named": [p for name in done for p in concepts[name]["named"]],
    }
    scores = read_scores(
        chat,
        guards.bank,
        guards.rows,
        of_bank["validation"],
        answer_tokens=ANSWER_TOKENS,
        progress=progress,
    )
    apart = Guards(guards.bank, calibrated(guards.rows, scores, RATE))
    return {
        f"{kind}, all in force, {how}": Share.of(chosen.fired(chat, prompts, progress))
        for how, chosen in (("as fitted", guards), ("calibrated together", apart))
        for kind, prompts in asked.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--limit", type=int, default=24, help="concepts, the first of each kind first"
    )
    parser.add_argument(
        "--about",
        type=Path,
        help="folder with a document of a concept, albert-einstein.txt; only these are measured",
    )
    parser.add_argument("--out", type=Path, default=Path("build/erasures"))
    parser.add_argument(
        "--dtype", default="float32", help="of the weights; bfloat16 for half of the memory"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave out the evaluation that guard new ends in: about half of the time",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    concepts = tomllib.loads(CONCEPTS.read_text("utf-8"))
    order: dict[str, list[str]] = {}
    for name, concept in concepts.items():
        order.setdefault(concept["kind"], []).append(name)
    turns = sorted((i, name) for names in order.values() for i, name in enumerate(names))
    documents = {
        name: read_documents([path])
        for name in concepts
        if options.about and (path := options.about / f"{file_name(name)}.txt").is_file()
    }
    chosen = [name for _, name in turns if not options.about or name in documents][: options.limit]
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    chat = TransformersChat.load(options.model, dtype=options.dtype)
    with stages() as progress:
        for name in chosen:
            if name not in done:
                done[name] = made(
                    chat,
                    name,
                    concepts[name],
                    documents.get(name, ()),
                    folder,
                    progress,
                    is_timed=not options.untimed,
                )
                results.write_text(json.dumps(done, indent=1))
        mine = {name: done[name] for name in chosen}
        shares = together(chat, concepts, mine, progress)
    for figure in ("named", "indirect", "leaks", "unnamed", "loops", "near"):
        flags = [flag for one in mine.values() for flag in one[figure]]
        print(f"{figure}: {Share.of(flags)}")
    for figure, share in shares.items():
        print(f"{figure}: {share} fire")
    times = sorted(one["took_s"] for one in mine.values() if one["took_s"] is not None)
    if times:
        print(f"guard new: median {times[len(times) // 2]} s, longest {times[-1]} s")
    print(f"known: {sum(one['known'] for one in mine.values())} of {len(mine)}")


if __name__ == "__main__":
    main()
