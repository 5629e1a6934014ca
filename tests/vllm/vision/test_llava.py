"""A LLaVA in vLLM beside the same folder in the engine of transformers: images that are cut by
parts of prompts, rows with and without them, preemption, caches of encoder and prefixes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import CONFIG, WIDTH, save_guard  # noqa: E402
from tests.vllm.conftest import WAYS  # noqa: E402
from tests.vllm.driver import run  # noqa: E402
from tests.vllm.vision.models import save_model  # noqa: E402
from tests.vllm.vision.reference import IMAGE, Reference  # noqa: E402

PARTS = ("text", "image", "last")
"""The tokens that a guard of its own scores, each."""
CONFIGURED = CONFIG + "\n".join(
    ["", *(f'[[guards]]\nname = "{name}"\nartifact = "{name}.safetensors"' for name in PARTS)]
    + [f'[policies.parts]\nguards = {json.dumps(PARTS)}\naction = "steer"']
)
SEEING: dict[str, Any] = {
    "hook": "tests.vllm.vision.absent:stand_in",
    "skip_tokenizer_init": False,
    "limit_mm_per_prompt": {"image": 2},
}
# an image of 16 tokens often lies across two parts, and the requests do not find room together
CROWDED: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "num_gpu_blocks_override": 10,
    # a request comes in before there is room for all of its prompt
    "scheduler_reserve_full_isl": False,
    "scheduling_policy": "priority",
}


def asked(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests with no image, one or two, many of which begin alike."""
    rng = random.Random(seed)
    heads = [prompt(40, seed=i) for i in range(3)]
    found = []
    for i in range(count):
        tokens = rng.choice(heads)[: rng.choice((0, 20, 40))]
        images: list[list[int]] = []
        for _ in range(rng.choice((0, 1, 1, 2))):
            tokens = [*tokens, IMAGE, *prompt(rng.randint(0, 20), seed=rng.randrange(2))]
            images.append([rng.randrange(3)])
        request: dict[str, Any] = {
            "prompt": tokens + prompt(rng.randint(0 if images else 1, 12), seed=1000 + i),
            "tokens": rng.randint(2, 10),
            "policy": rng.choice([None, "none", "firm", "both", "watch", "parts"]),
            "at": i // 3,
            "priority": rng.randint(0, 3),
        }
        found.append(request | ({"images": images} if images else {}))
    return found


REQUESTS = asked(40, seed=3)
TWICE = [
    {"prompt": [*prompt(40, seed=0), IMAGE, *prompt(20, seed=1)], "images": [[seed]]}
    | {"tokens": 4, "policy": policy, "at": at}
    for policy, seed, at in (("none", 0, 0), ("firm", 0, 30), ("firm", 1, 60), ("none", 1, 90))
]
"""The same words: without guards, with them, beside another image, and without them again."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a LLaVA, and guards that fire on about half of the prompts."""
    made = tmp_path_factory.mktemp("llava")
    save_model(made / "model", "llava")
    (made / "config.toml").write_text(CONFIGURED, "utf-8")
    limits = dict.fromkeys(("firm", "late", *PARTS), 1e9)
    _save_guards(made, limits)
    reference = Reference(made)
    scores: dict[str, list[float]] = {name: [] for name in limits}
    for request in REQUESTS:
        for policy in ("both", "parts"):
            _, verdict = reference.answer(request | {"policy": policy, "tokens": 1})
            for guard in verdict.guards:
                scores[guard.guard].append(guard.score)
    reference.close()
    _save_guards(made, {name: float(np.median(scores[name])) for name in limits})
    return made


def _save_guards(made: Path, limits: Mapping[str, float]) -> None:
    rng = np.random.default_rng(1)
    gates = rng.normal(size=(2, WIDTH)).astype("f4")
    for name, limit in limits.items():
        directions = (100 * rng.normal(size=(2 if name == "firm" else 1, WIDTH))).astype("f4")
        tokens = name if name in PARTS else "all"
        save_guard(made, name, gates, directions, limit, tokens=tokens)


@pytest.fixture(scope="module")
def right(folder: Path) -> list[tuple[list[int], Any]]:
    """What transformers says of all requests: a guard of its folder is accepted there, too."""
    reference = Reference(folder)
    found = [reference.answer(request) for request in (*REQUESTS, *TWICE)]
    reference.close()
    return found


def assert_right(
    requests: Sequence[Mapping[str, Any]],
    came: Sequence[Mapping[str, Any]],
    right: Sequence[tuple[list[int], Any]],
) -> int:
    """Tokens and verdicts are those; gives how many were steered."""
    steered = 0
    for request, one, (tokens, verdict) in zip(requests, came, right, strict=True):
        assert one["guard"]["outcome"] == verdict.outcome, request
        assert one["tokens"] == [tokens], request
        for guard, expected in zip(one["guard"]["guards"], verdict.guards, strict=True):
            assert guard["guard"] == expected.guard
            assert guard["position"] == expected.position, request
            assert guard["score"] == pytest.approx(expected.score, rel=1e-4, abs=1e-3), request
        steered += verdict.outcome == "steered"
    return steered


@pytest.mark.parametrize("name", WAYS)
def test_tokens_and_verdicts_are_those_of_transformers(
    name: str, folder: Path, right: list[tuple[list[int], Any]]
) -> None:
    found = run(folder, REQUESTS, **SEEING, **CROWDED, **WAYS[name])
    (came,) = found["phases"]
    assert assert_right(REQUESTS, came, right[: len(REQUESTS)]) > 5
    assert found["preempted"] > 0
    seeing = [one for request, one in zip(REQUESTS, came, strict=True) if "images" in request]
    assert sum(one["cached"] > 0 for one in seeing) > 3


def test_prefixes_are_kept_apart_by_guards_and_by_images(
    folder: Path, right: list[tuple[list[int], Any]]
) -> None:
    faults = (None, "without_salt", "without_image")
    found = run(folder, TWICE, TWICE, TWICE, **SEEING, faults=faults)
    sound, saltless, blind = found["phases"]
    expected = right[len(REQUESTS) :]
    assert_right(TWICE, sound, expected)
    # the second bare request finds the keys of none, and none finds those of another image
    assert [one["cached"] for one in sound] == [0, 0, 32, 32]
    for came in (saltless, blind):
        with pytest.raises(AssertionError):
            assert_right(TWICE, came, expected)


def test_silent_rows_are_those_of_vllm_without_the_plugin(
    folder: Path, right: list[tuple[list[int], Any]]
) -> None:
    plain = [request | {"policy": None} for request in REQUESTS]
    (bare,) = run(folder, plain, config=None, **SEEING, **CROWDED)["phases"]
    silent = [
        i for i, (_, verdict) in enumerate(right[: len(REQUESTS)]) if verdict.outcome != "steered"
    ]
    assert len(silent) > 10
    for i in silent:
        assert bare[i]["tokens"] == [right[i][0]], REQUESTS[i]
