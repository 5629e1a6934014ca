"""Answers under JSON schemas: what they cost, whether they are valid, what steered ones leak.

    python -m benchmarks.structured [--model smollm2] [--rounds 7]

*Cost*: the same prompts, bare and under a schema, in a random order in one run, in batches of 1 and
8, through the engine of the server; medians of tokens per second. *Validity*: answers under the
schemas that pydantic writes for types of OpenAI's Python package, sampled, as `jsonschema` judges
them. *Leaks*: questions of the shipped topic's test split that the bare model answers with the
fact, under a schema with a place for it, through the service; bare and steered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
from openai.types import (
    audio,
    batch_request_counts,
    chat,
    completion_usage,
    create_embedding_response,
    file_object,
    image,
    model,
    model_deleted,
    moderation,
    responses,
    vector_store,
)
from openai.types.fine_tuning import fine_tuning_job_event
from pydantic import BaseModel

from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.config.schema import load_config
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.models.chat import TransformersChat
from server.services.build import build_services
from server.services.interface import FinishedText, SamplingParams, TextDelta, TextRowRequest
from server.services.text import BatchedTextService
from steering.constraint import Constraint
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.grammars import Grammars
from steering.hidden.bank import HiddenBank

TOPIC = Path("examples/harry-potter")
TOKENS = 48
TYPES: Sequence[type[BaseModel]] = (
    batch_request_counts.BatchRequestCounts,
    completion_usage.CompletionUsage,
    completion_usage.CompletionTokensDetails,
    create_embedding_response.Usage,
    file_object.FileObject,
    image.Image,
    model.Model,
    model_deleted.ModelDeleted,
    moderation.CategoryScores,
    moderation.Categories,
    vector_store.FileCounts,
    vector_store.ExpiresAfter,
    fine_tuning_job_event.FineTuningJobEvent,
    audio.TranscriptionSegment,
    audio.TranscriptionWord,
    chat.ChatCompletionDeleted,
    chat.ChatCompletionTokenLogprob,
    responses.ResponseUsage,
    responses.ResponseError,
    chat.ChatCompletionMessage,
)
ENDLESS = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 1000}},
    "required": ["words"],
}
"""A schema that no answer of TOKENS tokens comes to the end of."""
FACT = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 80}},
    "required": ["answer"],
    "additionalProperties": False,
}


def main() -> None:
    """Measure, and print the figures of each part as a line of JSON once it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answers", type=int, default=5, help="under each schema")
    parser.add_argument("--questions", type=int, default=60)
    arguments = parser.parse_args()
    loaded = TransformersChat.load(arguments.model)
    for batch in (1, 8):
        _print("cost", cost(loaded, batch, arguments.rounds))
    _print("compile_ms", compile_times(loaded))
    del loaded
    with tempfile.TemporaryDirectory() as folder:
        service = serve(arguments.model, Path(folder))
        try:
            _print("leaks", asyncio.run(leaks(service, arguments.questions)))
            _print("validity", asyncio.run(validity(service, arguments.answers)))
        finally:
            service.close()


def _print(part: str, figures: dict[str, Any]) -> None:
    print(json.dumps({part: figures}), flush=True)


def grammars_of(loaded: TransformersChat) -> Grammars:
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    return Grammars(loaded.tokenizer, vocabulary, loaded.end_tokens)


def cost(loaded: TransformersChat, batch: int, rounds: int) -> dict[str, Any]:
    """Median tokens per second of both sides, and of their ratios within a round."""
    rows = in_split(read_rows(TOPIC / "retain.jsonl", RetainPrompt), "test")
    prompts = [loaded.prompt(row.prompt) for row in rows if not row.near][:batch]
    grammar = grammars_of(loaded).compile(Constraint.json_schema(ENDLESS))
    sides = {"bare": RowSampling(), "json_schema": RowSampling(grammar=grammar)}
    engine = TransformersEngine(loaded.model, HiddenBank(), capacity=batch)
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number, side in shuffled_rounds(list(sides), rounds):
        engine.reset()
        began = time.perf_counter()
        engine.prefill([RowStart(prompt, (), sides[side]) for prompt in prompts])
        for _ in range(TOKENS - 1):
            engine.decode()
        if number:
            speeds[side].append(TOKENS * batch / (time.perf_counter() - began))
    engine.close()
    relative = summary(speeds["json_schema"], ratios(speeds["json_schema"], speeds["bare"]))
    return {
        "batch": batch,
        **{side: round(statistics.median(speeds[side]), 1) for side in sides},
        "ratio": round(relative["ratio"], 3),
        "quartiles": [round(bound, 3) for bound in relative["quartiles"]],
    }


def compile_times(loaded: TransformersChat) -> dict[str, float]:
    """Milliseconds to compile the schemas of TYPES, each for the first time."""
    grammars, taken = grammars_of(loaded), []
    for kind in TYPES:
        began = time.perf_counter()
        grammars.compile(Constraint.json_schema(kind.model_json_schema()))
        taken.append(1000 * (time.perf_counter() - began))
    return {"median": round(statistics.median(taken), 2), "most": round(max(taken), 2)}


def serve(name: str, folder: Path) -> BatchedTextService:
    """The service of the model, with the shipped guard under the policy `steer`."""
    path = folder / "config.toml"
    artifact = json.dumps(str((TOPIC / "steer.safetensors").absolute()))
    path.write_text(
        f'[[models]]\nname = "{name}"\nsource = "{name}"\n'
        f'[[guards]]\nname = "topic"\nartifact = {artifact}\n'
        '[policies.steer]\nguards = ["topic"]\naction = "steer"\n'
    )
    (service,) = build_services(load_config(path), lambda request, verdict: None).values()
    assert isinstance(service, BatchedTextService)
    return service


async def ask(
    service: BatchedTextService,
    questions: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    policy: str = "none",
    max_tokens: int = 256,
    **sampling: Any,
) -> list[tuple[str, FinishedText]]:
    """The answers to prompts, each under its schema, 16 at once."""
    together = asyncio.Semaphore(16)

    async def one(number: int, text: str, schema: Mapping[str, Any]) -> tuple[str, FinishedText]:
        params = SamplingParams(
            max_tokens, constraint=Constraint.json_schema(schema), seed=number, **sampling
        )
        prompt = service.encode_chat([{"role": "user", "content": text}])
        row = TextRowRequest(str(number), prompt, policy, params)
        async with together:
            await service.prepare([row])
            (events,) = service.submit([row])
            said = ""
            async for event in events:
                if isinstance(event, FinishedText):
                    return said, event
                if isinstance(event, TextDelta):
                    said += event.text
        raise RuntimeError("a row ended without its last event")

    return await asyncio.gather(*(one(i, *question) for i, question in enumerate(questions)))


async def validity(service: BatchedTextService, answers: int) -> dict[str, Any]:
    """How many answers end by themselves, and how many of all are valid."""
    questions = [
        (f"Write an example of {kind.__name__} as JSON, with short values.", schema)
        for kind in TYPES
        for schema in [kind.model_json_schema()]
        for _ in range(answers)
    ]
    results = await ask(service, questions, temperature=0.7)
    valid = [
        finished.reason == "stop" and _is_valid(text, schema)
        for (text, finished), (_, schema) in zip(results, questions, strict=True)
    ]
    return {
        "schemas": len(TYPES),
        "answers": len(results),
        "valid": sum(valid),
        "cut by max_tokens": sum(finished.reason == "length" for _, finished in results),
    }


async def leaks(service: BatchedTextService, questions: int) -> dict[str, Any]:
    """Of questions whose bare answer leaks, how many steered ones do, and how many are valid."""
    rows = in_split(read_rows(TOPIC / "forget.jsonl", ForgetPrompt), "test")[:questions]
    asked = [(row.prompt, FACT) for row in rows]
    bare = await ask(service, asked, temperature=0.0)
    known = [i for i, row in enumerate(rows) if row.leaks(bare[i][0])]
    steered = await ask(service, [asked[i] for i in known], policy="steer", temperature=0.0)
    return {
        "questions": len(rows),
        "bare answers that leak": len(known),
        "steered answers that leak": sum(
            rows[i].leaks(text) for i, (text, _) in zip(known, steered, strict=True)
        ),
        "steered answers that are valid": sum(
            finished.reason == "stop" and _is_valid(text, FACT) for text, finished in steered
        ),
        "fired": sum(finished.verdict.outcome == "steered" for _, finished in steered),
    }


def _is_valid(text: str, schema: Mapping[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


if __name__ == "__main__":
    main()
