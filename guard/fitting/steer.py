"""Fitting a steering guard: MLLMEraser's direction and gate, searched on a validation split.

Needs torch and a loaded model. Nothing here looks at the test split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from classifiers.calibration import prompts_needed, threshold_for
from guard.errors import DataError
from guard.fitting.gates import POOL, TokenStates, fit_gates
from guard.fitting.wording import REFUSALS, WRAPPERS
from guard.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, in_split
from steering.engines.offline import answers, token_states
from steering.engines.sampling import RowSampling
from steering.engines.transformers import RowStart, TransformersEngine
from steering.methods.steer import contrast
from steering.table import Bank, RowGuard, SteerGuard

Progress = Callable[[str, int], Callable[[int], None]]
"""`progress(what, total)` gives the function that advances it."""

ANSWER_TOKENS = 64
ANSWERED_RETAIN = 160
CONTRASTED = 64
POSITIONS = 6
SEARCHED = 40
SCHEDULE = (1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, *[0.15] * 38)
"""Share of the direction at the token where the guard fires and at those that follow."""
SENSE_DEPTHS = ((0.25, 0.45), (0.25, 0.35), (0.35, 0.45))
ACT_DEPTHS = ((0.45, 0.54, 0.64, 0.74), (0.54, 0.67, 0.8))
STRENGTHS = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Trial:
    """One setting tried on the validation split; `leak_rate` over what the bare model leaks."""

    act_layers: tuple[int, ...]
    strength: float
    leak_rate: float
    perplexity: float
    chosen: bool = False


@dataclass(frozen=True)
class SteerFit:
    """All that a fit found: the guard, its thresholds and the figures they were chosen by."""

    guard: SteerGuard
    threshold: float
    recheck: float
    strength: float
    trials: tuple[Trial, ...]
    forget_scores: tuple[float, ...]
    far_scores: tuple[float, ...]
    near_scores: tuple[float, ...]
    calibration: dict[str, Any]


class Chat:
    """A model with its tokenizer: prompts as the model's own chat template writes them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens(model, tokenizer)

    def prompt(self, text: str) -> list[int]:
        """Token ids of one user message, generation prompt added."""
        chat = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(rendered, add_special_tokens=False).input_ids)

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    listed = stated if isinstance(stated, list) else [stated]
    return frozenset(t for t in (*listed, tokenizer.eos_token_id) if t is not None)


def fit_steer(
    chat: Chat,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    *,
    pairs: Sequence[PairedAnswers] = (),
    fpr: float = 0.01,
    near_fpr: float = 0.05,
    seed: int = 0,
    progress: Progress,
) -> SteerFit:
    """Fit direction, gate, layers, strength and thresholds.

    Raises DataError where a split is empty or holds too few retain prompts for the rates asked.
    """
    _check_sizes(forget, retain, fpr, near_fpr)
    rng = random.Random(seed)
    depth = chat.model.config.num_hidden_layers
    bare = TransformersEngine(chat.model, Bank([]), capacity=32)
    known = in_split(forget, "validation")
    held_out = in_split(retain, "validation")
    sample = rng.sample(held_out, min(ANSWERED_RETAIN, len(held_out)))
    trained = rng.sample(in_split(forget, "train"), min(CONTRASTED, len(in_split(forget, "train"))))
    spoken = _answer(chat, bare, [row.prompt for row in (*known, *sample)], progress)
    first = _answer(chat, bare, [row.prompt for row in trained], progress, tokens=POSITIONS)
    bare.close()

    gate = _fit_gate(chat, forget, retain, rng, (fpr, near_fpr), depth, progress)
    recheck = _recheck_threshold(chat, gate, sample, spoken[len(known) :], fpr, near_fpr, progress)
    leaked = [
        row.prompt
        for row, tokens in zip(known, spoken, strict=False)
        if row.leaks(chat.text(tokens))
    ]
    if not leaked:
        raise DataError("the bare model leaks on no validation prompt: there is nothing to forget")
    tried = [row for row in known if row.prompt in set(leaked)][:SEARCHED]
    directions = _directions(chat, trained, first, pairs, progress)
    trials, best = _search(chat, gate, directions, tried, recheck, depth, progress)
    return SteerFit(
        guard=best,
        threshold=gate.threshold,
        recheck=recheck,
        strength=next(trial.strength for trial in trials if trial.chosen),
        trials=trials,
        forget_scores=gate.forget,
        far_scores=gate.far,
        near_scores=gate.near,
        calibration={
            "false_positive_rate": fpr,
            "near_false_positive_rate": near_fpr,
            "retain_prompts": len(held_out),
            "retain_prompts_needed": max(prompts_needed(fpr), prompts_needed(near_fpr)),
            "far_fired": _share(gate.far, gate.threshold),
            "near_fired": _share(gate.near, gate.threshold),
            "forget_fired": _share(gate.forget, gate.threshold),
            "bare_leaks": len(leaked),
            "validation_leak_rate": next(t.leak_rate for t in trials if t.chosen),
        },
    )


@dataclass(frozen=True)
class _Gate:
    layers: tuple[int, ...]
    gates: Tensor
    threshold: float
    forget: tuple[float, ...]
    far: tuple[float, ...]
    near: tuple[float, ...]


def _check_sizes(
    forget: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt], fpr: float, near_fpr: float
) -> None:
    for name, rows in (("forget", forget), ("retain", retain)):
        for split in ("train", "validation"):
            if not in_split(rows, split):  # type: ignore[arg-type, type-var]
                raise DataError(f"the {name} file has no prompts in the {split} split")
    held_out = in_split(retain, "validation")
    for rate, kind in ((fpr, "far"), (near_fpr, "near")):
        have = sum(row.near == (kind == "near") for row in held_out)
        if have < prompts_needed(rate):
            raise DataError(
                f"a false-positive rate of {rate:.2%} needs {prompts_needed(rate)} {kind} retain "
                f"prompts in the validation split, there are {have}: add some, or ask for a "
                "higher rate"
            )


def _answer(
    chat: Chat,
    engine: TransformersEngine,
    prompts: Sequence[str],
    progress: Progress,
    tokens: int = ANSWER_TOKENS,
    guards: Sequence[RowGuard] = (),
    what: str = "bare answers",
) -> list[tuple[int, ...]]:
    starts = [RowStart(chat.prompt(text), guards, RowSampling()) for text in prompts]
    given = answers(
        engine,
        starts,
        max_tokens=tokens,
        end_tokens=chat.end_tokens,
        advance=progress(what, len(starts)),
    )
    return [answer.tokens for answer in given]


def _states(
    chat: Chat, sequences: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress
) -> TokenStates:
    shared = _shared_prefix(sequences)
    parts: dict[int, Tensor] = {}
    advance = progress("activations", len(sequences))
    for i, states in token_states(chat.model, sequences, layers, advance=advance):
        # the first token is the attention sink: the runtime leaves it out as well
        parts[i] = states[1:].half()
    lengths = torch.tensor([len(parts[i]) for i in range(len(sequences))])
    return TokenStates(
        states=torch.cat([parts[i] for i in range(len(sequences))]),
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        own=torch.cat([torch.arange(1, n + 1) >= shared for n in lengths.tolist()]),
        count=len(sequences),
    )


def _shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    low, high = min(sequences), max(sequences)
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(low))


def _fit_gate(
    chat: Chat,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rng: random.Random,
    rates: tuple[float, float],
    depth: int,
    progress: Progress,
) -> _Gate:
    def wrapped(rows: Sequence[Any], share: float) -> list[Any]:
        also = [row for row in rows if rng.random() < share]
        texts = [(row, row.prompt) for row in rows]
        return texts + [(row, rng.choice(WRAPPERS).format(row.prompt)) for row in also]

    pairs = [[round(share * depth) - 1 for share in shares] for shares in SENSE_DEPTHS]
    layers = sorted({max(layer, 0) for pair in pairs for layer in pair})
    positive = wrapped(in_split(forget, "train"), 1.0)
    negative = wrapped(in_split(retain, "train"), 0.5)
    checked = wrapped(in_split(forget, "validation"), 0.0)
    silent = wrapped(in_split(retain, "validation"), 0.0)

    def states(rows: Sequence[Any]) -> TokenStates:
        return _states(chat, [chat.prompt(text) for _, text in rows], layers, progress)

    forget_states, retain_states = states(positive), states(negative)
    check_states, silent_states = states(checked), states(silent)
    near_train = torch.tensor([row.near for row, _ in negative])
    near = torch.tensor([row.near for row, _ in silent])
    found = []
    for pair in dict.fromkeys(tuple(max(layer, 0) for layer in pair) for pair in pairs):
        at = [layers.index(layer) for layer in pair]
        gates = fit_gates(forget_states, retain_states, near_train, at)
        quiet = silent_states.pooled(silent_states.score(at, gates))
        heard = check_states.pooled(check_states.score(at, gates))
        far_scores, near_scores = quiet[~near].tolist(), quiet[near].tolist()
        threshold = max(
            threshold_for(far_scores, rates[0]), threshold_for(near_scores, rates[1])
        )
        scores = (tuple(heard.tolist()), tuple(far_scores), tuple(near_scores))
        found.append(_Gate(pair, gates, threshold, *scores))
    return max(found, key=lambda gate: _share(gate.forget, gate.threshold))


def _recheck_threshold(
    chat: Chat,
    gate: _Gate,
    rows: Sequence[RetainPrompt],
    spoken: Sequence[Sequence[int]],
    fpr: float,
    near_fpr: float,
    progress: Progress,
) -> float:
    """The threshold for prompt and answer together, on retain prompts with their own answers."""
    sequences = [[*chat.prompt(row.prompt), *said] for row, said in zip(rows, spoken, strict=True)]
    states = _states(chat, sequences, gate.layers, progress)
    scores = states.pooled(states.score(range(len(gate.layers)), gate.gates)).tolist()
    found = [gate.threshold]
    for rate, kind in ((fpr, False), (near_fpr, True)):
        own = [score for score, row in zip(scores, rows, strict=True) if row.near == kind]
        # fewer answers than prompts were made: where they cannot carry the rate, the largest does
        enough = len(own) >= prompts_needed(rate)
        found.append(threshold_for(own, rate) if enough else max(own, default=gate.threshold))
    return max(found)


def _directions(
    chat: Chat,
    rows: Sequence[ForgetPrompt],
    spoken: Sequence[Sequence[int]],
    pairs: Sequence[PairedAnswers],
    progress: Progress,
) -> Tensor:
    """`[layers, width]`: erasure against recall continuations, over their first POSITIONS tokens.

    The state at the last prompt token decides the first answer token, hence counts as the first.
    """
    if pairs:
        prompts = [chat.prompt(pair.prompt) for pair in pairs]
        recall = [chat.ids(pair.recall) for pair in pairs]
        erasure = [chat.ids(pair.erasure) for pair in pairs]
    else:
        prompts = [chat.prompt(row.prompt) for row in rows]
        recall = [list(said) for said in spoken]
        erasure = [chat.ids(REFUSALS[i % len(REFUSALS)]) for i in range(len(rows))]
    layers = range(chat.model.config.num_hidden_layers)

    def means(said: Sequence[Sequence[int]]) -> Tensor:
        sequences = [[*p, *s[: POSITIONS - 1]] for p, s in zip(prompts, said, strict=True)]
        advance = progress("directions", len(sequences))
        total = torch.zeros(len(sequences), len(layers), chat.model.config.hidden_size)
        for i, states in token_states(chat.model, sequences, layers, advance=advance):
            total[i] = states[len(prompts[i]) - 1 :].mean(0)
        return total

    return contrast(means(erasure), means(recall)).float()


def _search(
    chat: Chat,
    gate: _Gate,
    directions: Tensor,
    rows: Sequence[ForgetPrompt],
    recheck: float,
    depth: int,
    progress: Progress,
) -> tuple[tuple[Trial, ...], SteerGuard]:
    """Try act layers and strengths on validation prompts that the bare model leaks on.

    The gate's misses count as leaks here too. Fewest leaks win, then the lowest perplexity.
    """
    trials: list[Trial] = []
    guards: list[SteerGuard] = []
    schedule = torch.tensor(SCHEDULE)[:, None, None]
    for shares in ACT_DEPTHS:
        picked = sorted({min(max(round(s * depth), max(gate.layers)), depth - 1) for s in shares})
        guard = SteerGuard(
            name="fit",
            sense_layers=gate.layers,
            gates=gate.gates,
            act_layers=tuple(picked),
            directions=schedule * directions[picked][None],
            pool=POOL,
        )
        engine = TransformersEngine(chat.model, Bank([guard]), capacity=SEARCHED)
        for strength in STRENGTHS:
            row_guard = RowGuard("fit", gate.threshold, strength, True, recheck)
            said = _answer(
                chat,
                engine,
                [row.prompt for row in rows],
                progress,
                guards=[row_guard],
                what=f"layers {picked}, strength {strength}",
            )
            texts = [chat.text(tokens) for tokens in said]
            leaks = sum(row.leaks(text) for row, text in zip(rows, texts, strict=True))
            fluency = perplexity(chat, said)
            trials.append(Trial(guard.act_layers, strength, leaks / len(rows), fluency))
            guards.append(guard)
        engine.close()
    best = min(range(len(trials)), key=lambda i: (trials[i].leak_rate, trials[i].perplexity))
    marked = [
        Trial(t.act_layers, t.strength, t.leak_rate, t.perplexity, chosen=i == best)
        for i, t in enumerate(trials)
    ]
    return tuple(marked), guards[best]


@torch.inference_mode()
def perplexity(chat: Chat, said: Sequence[Sequence[int]]) -> float:
    """Perplexity of answers by themselves under the bare model: each as a lone assistant turn.

    Without the question in view, so that an answer that moves away from it is not punished for
    that: what is measured is whether the text is fluent.
    """
    kept = [list(tokens) for tokens in said if len(tokens) > 1]
    if not kept:
        return float("nan")
    lead = chat.prompt("Say something.")[-3:]
    total, count = 0.0, 0
    for at in range(0, len(kept), 16):
        rows = [[*lead, *tokens] for tokens in kept[at : at + 16]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        ids = ids.to(next(chat.model.parameters()).device)
        logprobs = chat.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        taken = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        for row, values in zip(rows, taken, strict=True):
            own = values[len(lead) : len(row) - 1]
            total -= float(own.sum())
            count += len(own)
    return float(torch.tensor(total / max(count, 1)).exp())


def _share(scores: Sequence[float], threshold: float) -> float:
    return sum(score > threshold for score in scores) / max(len(scores), 1)
