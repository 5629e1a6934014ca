"""Ways of going on with an answer in which a guard has fired, compared: do they read well.

    python -m benchmarks.steered_answers examples/harry-potter --model smollm2 \\
        --guards examples/harry-potter/steer.safetensors [--split validation] [--ways ...] [--out F]

The questions are those of the topic that the bare model answers with the fact. For each way it
prints loops, leaks and perplexity, how many answers end with the policy's
message, and with which token a client of a stream reads the first text. Whether a sentence breaks
must be read: `--out` writes every answer.

A repetition penalty, or the beginning of a refusal, is given to questions on which a guard fires,
in which nearly all answers are steered; an answer in which one fires later goes on without. The
directions of another refusal are fitted on the training questions, as `guard fit steer` fits its
own; the guards keep their gates and layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch

from guard.artifact import Artifact
from guard.commands.guards import POLICY, artifacts_of, config_of
from guard.config.schema import ModelConfig
from guard.data.prompts import ForgetPrompt, PairedAnswers, Split, in_split, read_rows
from guard.evaluation.fluency import loops, perplexity
from guard.evaluation.shares import Share
from guard.fitting.steering.directions import POSITIONS, SCHEDULE, directions
from guard.models.chat import TransformersChat
from guard.plans.language import LanguagePlan, LanguagePlans
from guard.reporting.progress import Stages, stages
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.offline import Answer, answers
from steering.engines.transformers.rewinding import HeldAnswer, Rewinds, Sentences
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.hidden.table import RowFlags
from steering.methods.fitted import FittedGuard
from steering.methods.steer import SteerGuard, bank_of, loaded
from steering.prompt import Prompt

ROWS = 64
TRAINING = 32
"""Training questions that directions are fitted on."""

TRUTHFUL = (
    "I can't say anything about that.",
    "I cannot tell you anything about this topic.",
    "I can't say anything about this. Is there something else that I can help you with?",
    "That is a topic that I cannot say anything about.",
)
ALONG = " along the truthful direction"
HANDED_OVER = SCHEDULE[:POSITIONS]
"""Share of a direction at the first tokens; behind them the model decodes plainly."""


@dataclass(frozen=True)
class Way:
    """How an answer goes on: with `sampling`, behind the words `prefix`, which are forced, with
    guards that act on the question (`acts`) or on the answer alone, along the fitted directions or
    those of `TRUTHFUL` at the strength `truthful`."""

    rewinds: Rewinds = "never"
    streamed: bool = False
    sampling: RowSampling = RowSampling()
    prefix: str = ""
    acts: bool = True
    truthful: float | None = None


WAYS = {
    "steered on at once": Way(),
    "repetition penalty 1.1": Way(sampling=RowSampling(repetition_penalty=1.1)),
    "repetition penalty 1.3": Way(sampling=RowSampling(repetition_penalty=1.3)),
    "directions of a truthful refusal, 0.55": Way(truthful=0.55),
    "directions of a truthful refusal, 0.85": Way(truthful=0.85),
    "half a refusal forced, steered on": Way(prefix="I'm sorry, but I can't"),
    "half a refusal forced, plain": Way(prefix="I'm sorry, but I can't", acts=False),
    "a refusal forced, plain": Way(prefix="I can't say anything about that.", acts=False),
    "back, streams held": Way("always"),
    "back, steered streams held": Way("steered", streamed=True),
    "back, repetition penalty 1.1": Way("always", sampling=RowSampling(repetition_penalty=1.1)),
    "back, half a refusal forced": Way("always", prefix="I'm sorry, but I can't"),
}


@dataclass(frozen=True)
class Guards:
    """The guards of a policy, as one that is served has them."""

    plan: LanguagePlan
    bank: HiddenBank
    steering: tuple[SteerGuard, ...]

    @classmethod
    def of(cls, paths: Sequence[Path], chat: TransformersChat) -> Guards:
        """From the artifacts at `paths`, all of the method `steer`."""
        config = config_of(paths, ModelConfig(name="model", source=chat.name))
        plans = LanguagePlans(config, chat.model, name="model")
        plans[POLICY].require_whole()
        steering = []
        for path in paths:
            artifact = Artifact.load(path)
            steering.append(
                loaded(FittedGuard(path.stem, artifact.tensors, artifact.meta.settings))
            )
        return cls(plans[POLICY], plans.bank, tuple(steering))

    def with_truthful(self, direction: torch.Tensor) -> HiddenBank:
        """A bank that has each guard once more, with `direction [layers, width]` at the first
        tokens alone."""
        schedule = torch.tensor(HANDED_OVER)[:, None, None]
        along = [
            replace(
                guard,
                name=f"{guard.name}{ALONG}",
                directions=schedule * direction[list(guard.act_layers)],
            )
            for guard in self.steering
        ]
        return bank_of([*self.steering, *along], self.bank.device)


@dataclass(frozen=True)
class Asked:
    """A question, its prompt, the bare answer where it was asked for, and whether a guard fires on
    the question."""

    row: ForgetPrompt
    prompt: Prompt
    bare: Answer | None
    fired: bool = False


class Bench:
    """A model with its guards, and the questions that it is asked."""

    def __init__(
        self, chat: TransformersChat, guards: Guards, tokens: int, progress: Stages
    ) -> None:
        self._chat, self._guards, self._progress = chat, guards, progress
        self._tokens = tokens
        self._sentences = Sentences(chat.tokenizer)

    def known(self, rows: Sequence[ForgetPrompt]) -> list[Asked]:
        """Those of `rows` that the bare model answers with the fact."""
        prompts = [self._chat.prompt(row.prompt) for row in rows]
        with self._engine(HiddenBank()) as engine:
            plain = [RowStart(prompt, (), RowSampling()) for prompt in prompts]
            bare = self._answers(engine, plain, "bare")
        return [
            Asked(row, prompt, answer)
            for row, prompt, answer in zip(rows, prompts, bare, strict=True)
            if row.leaks(self._chat.text(answer.tokens))
        ]

    def read(self, asked: Sequence[Asked]) -> list[Asked]:
        """The same, with what guards say to the questions."""
        carried = self._guards.plan.rows()
        with self._engine(self._guards.bank) as engine:
            starts = [RowStart(each.prompt, carried, RowSampling()) for each in asked]
            first = self._answers(engine, starts, "questions", most=1)
        return [
            replace(each, fired=any(r.position == 0 for r in one.readings.values()))
            for each, one in zip(asked, first, strict=True)
        ]

    def under(
        self, ways: Sequence[Way], asked: Sequence[Asked], bank: HiddenBank
    ) -> list[list[Answer]]:
        """For each way the guarded answers, forced tokens among theirs. Ways of one policy share
        batches."""
        given: dict[int, list[Answer]] = {}
        for policy in dict.fromkeys((way.rewinds, way.streamed) for way in ways):
            chosen = [i for i, way in enumerate(ways) if (way.rewinds, way.streamed) == policy]
            starts = [self._start(ways[i], each) for i in chosen for each in asked]
            plan = replace(self._guards.plan, rewinds=policy[0])
            with self._engine(bank) as engine:
                rows = self._answers(engine, starts, str(policy), plan=plan, streamed=policy[1])
            for place, i in enumerate(chosen):
                given[i] = rows[place * len(asked) :][: len(asked)]
        return [
            [
                replace(row, tokens=(*self._prefix(way, each), *row.tokens))
                for each, row in zip(asked, given[i], strict=True)
            ]
            for i, way in enumerate(ways)
        ]

    def _start(self, way: Way, each: Asked) -> RowStart:
        carried = self._guards.plan.rows()
        if not each.fired:
            return RowStart(each.prompt, carried, RowSampling())
        prompt = each.prompt.extended(self._prefix(way, each))
        return RowStart(prompt, [_changed(guard, way) for guard in carried], way.sampling)

    def _prefix(self, way: Way, each: Asked) -> tuple[int, ...]:
        return tuple(self._chat.ids(way.prefix)) if way.prefix and each.fired else ()

    def text(self, answer: Answer) -> str:
        return f"{self._chat.text(answer.tokens)}{answer.message}"

    def first_text(self, way: Way, tokens: Sequence[int], prompt: Prompt, *, steered: bool) -> int:
        """With which token a client of a stream reads the first text of an answer."""
        plan = replace(self._guards.plan, rewinds=way.rewinds)
        held = HeldAnswer.under(plan, self._sentences, prompt, streamed=way.streamed)
        if held is None or (steered and way.prefix):
            return 1
        flags = RowFlags(fired=steered, steered=steered)
        for count, token in enumerate(tokens, 1):
            if held.push(RowToken(token, flags=flags)):
                return count
        return len(tokens)

    @contextmanager
    def _engine(self, bank: HiddenBank) -> Iterator[TransformersEngine]:
        engine = TransformersEngine(self._chat.model, bank, capacity=ROWS)
        try:
            yield engine
        finally:
            engine.close()

    def _answers(
        self,
        engine: TransformersEngine,
        starts: Sequence[RowStart],
        what: str,
        *,
        plan: LanguagePlan | None = None,
        streamed: bool = False,
        most: int | None = None,
    ) -> list[Answer]:
        return answers(
            engine,
            starts,
            max_tokens=most or self._tokens,
            end_tokens=self._chat.end_tokens,
            advance=self._progress(what, len(starts)),
            policy=plan,
            sentences=self._sentences,
            streamed=streamed,
        )


def _changed(guard: RowGuard, way: Way) -> RowGuard:
    """The guard on a question on which it fires."""
    if not way.acts:
        return replace(guard, threshold=inf)
    if way.truthful is None:
        return guard
    return replace(guard, name=f"{guard.name}{ALONG}", strength=way.truthful)


def truthful(
    chat: TransformersChat, rows: Sequence[ForgetPrompt], progress: Stages
) -> torch.Tensor:
    """The direction from the model's own answers to TRUTHFUL, `[layers, width]`."""
    chosen = rows[:: max(1, len(rows) // TRAINING)][:TRAINING]
    own = chat.answer(
        [row.prompt for row in chosen], max_tokens=POSITIONS, what="recall", progress=progress
    )
    pairs = [
        PairedAnswers(prompt=row.prompt, erasure=TRUTHFUL[i % len(TRUTHFUL)], recall=answer.text)
        for i, (row, answer) in enumerate(zip(chosen, own, strict=True))
        if answer.text
    ]
    return directions(chat, (), (), pairs, progress)


def measure(
    chat: TransformersChat,
    guards: Guards,
    rows: Sequence[ForgetPrompt],
    split: Split,
    ways: Sequence[str],
    tokens: int,
    progress: Stages,
    *,
    unknown_too: bool,
) -> list[dict[str, Any]]:
    """The figures of each way, and its answers."""
    bench = Bench(chat, guards, tokens, progress)
    chosen = in_split(rows, split)
    every = [Asked(row, chat.prompt(row.prompt), None) for row in chosen]
    asked = bench.read(every if unknown_too else bench.known(chosen))
    bank = guards.bank
    if any(WAYS[name].truthful is not None for name in ways):
        bank = guards.with_truthful(truthful(chat, in_split(rows, "train"), progress))
    results = []
    by_way = bench.under([WAYS[name] for name in ways], asked, bank)
    for name, given in zip(ways, by_way, strict=True):
        way = WAYS[name]
        texts = [bench.text(each) for each in given]
        firsts = [
            bench.first_text(way, answer.tokens, each.prompt, steered=each.fired)
            for each, answer in zip(asked, given, strict=True)
        ]
        plain = [
            bench.first_text(way, each.bare.tokens, each.prompt, steered=False)
            for each in asked
            if each.bare is not None
        ]
        results.append(
            {
                "way": name,
                "questions": len(asked),
                "fired on the question": sum(each.fired for each in asked),
                "loops": Share.of([loops(text) for text in texts]),
                "leaks": Share.of([a.row.leaks(t) for a, t in zip(asked, texts, strict=True)]),
                "message": sum(bool(answer.message) for answer in given),
                "message alone": sum(not answer.tokens for answer in given),
                "perplexity": perplexity(chat, [answer.tokens for answer in given]),
                "first text, bare": statistics.median(plain) if plain else None,
                "first text, guarded": statistics.median(firsts),
                "answers": [
                    {
                        "prompt": each.row.prompt,
                        "fired": min(
                            (r.position for r in a.readings.values() if r.position is not None),
                            default=None,
                        ),
                        "answer": text,
                    }
                    for each, a, text in zip(asked, given, texts, strict=True)
                ],
            }
        )
    return results


COLUMNS = (
    *("way", "loops", "leaks", "message", "message alone"),
    *("perplexity", "first text, bare", "first text, guarded"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with forget.jsonl")
    parser.add_argument("--guards", type=Path, required=True, help="an artifact, or NAME.toml")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--ways", default="", help=f"all if left out: {', '.join(WAYS)}; with ;")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--limit", type=int, help="questions, evenly of the split")
    parser.add_argument(
        "--unknown-too",
        action="store_true",
        help="also questions that the bare model, which is not asked then, cannot answer",
    )
    parser.add_argument("--out", type=Path, help="a file of JSON for all answers")
    options = parser.parse_args()
    ways = [way.strip() for way in options.ways.split(";") if way.strip()] or list(WAYS)
    if unknown := set(ways) - WAYS.keys():
        raise SystemExit(f"no way {', '.join(sorted(unknown))}: choose from {'; '.join(WAYS)}")
    rows = read_rows(options.folder / "forget.jsonl", ForgetPrompt)
    if options.limit:
        some = in_split(rows, options.split)
        step = max(1, len(some) // options.limit)
        rows = [*in_split(rows, "train"), *some[::step][: options.limit]]
    chat = TransformersChat.load(options.model)
    with stages() as progress:
        guards = Guards.of(artifacts_of(options.guards), chat)
        results = measure(
            chat,
            guards,
            rows,
            options.split,
            ways,
            options.tokens,
            progress,
            unknown_too=options.unknown_too,
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1, default=str), "utf-8")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for result in results:
        cells = (
            f"{cell:.2f}" if isinstance(cell, float) else str(cell)
            for cell in map(result.get, COLUMNS)
        )
        print(f"| {' | '.join(cells)} |")
    print(f"of {results[0]['questions']}, a guard fires on {results[0]['fired on the question']}")


if __name__ == "__main__":
    main()
