"""`engine = "vllm"` behind `guard serve`, beside the transformers engine with the same model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import BadRequestError, OpenAI  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from guard.config.schema import Config, ModelConfig
from guard.errors import GuardFailed, ModelError, RequestError  # noqa: E402
from guard.plans.base import LoadedGuard
from guard.plans.language import LanguagePlan
from guard.plans.revision import RevisionEntry
from guard.tenants.secret import hash_key
from guard.verdict import Verdict  # noqa: E402
from server.services.interface import LanguageModelInfo, SamplingParams, TextRowRequest
from server.services.prompts import PromptEncoder
from server.vllm.build import _arguments  # noqa: E402
from server.vllm.service import VllmService  # noqa: E402
from steering.methods import METHODS
from steering.prompt import Media, Prompt
from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import CONFIG, HALT, save, save_tokenizer  # noqa: E402
from tests.vllm.driver import environment  # noqa: E402

MODELS = """
[server]
audit_log = "audit.jsonl"
max_batch = 8
queue_limit = 8
max_tokens_limit = 300
[[models]]
name = "fast"
source = "./model"
engine = "vllm"
engine_options = {{ enforce_eager = true, block_size = 32 }}
[[models]]
name = "plain"
source = "./model"
[[keys]]
hash = "{all}"
tenant = "all"
policies = ["firm", "both", "watch", "stop", "halt"]
[[keys]]
hash = "{one}"
tenant = "one"
default_policy = "watch"
"""


@dataclass(frozen=True)
class Stand:
    """A running server."""

    folder: Path
    url: str

    def client(self, key: str = "all") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def audited(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").open(encoding="utf-8")]


class Silent:
    """An engine that gives its tokens, and no verdict."""

    errored = False

    def __init__(self, tokens: Sequence[int]) -> None:
        plan = LanguagePlan("firm", "steer", "closed", (GUARD,), {})
        entries = {"firm": RevisionEntry("key", None, "tiny", plan, (), frozenset())}
        self.input_processor = SimpleNamespace(guard=SimpleNamespace(entries=entries))
        self._tokens = tokens

    async def generate(self, *_: object) -> AsyncIterator[Any]:
        for at, token in enumerate(self._tokens):
            await asyncio.sleep(0)
            ends = "length" if at == len(self._tokens) - 1 else None
            own = SimpleNamespace(token_ids=[token], logprobs=None, finish_reason=ends)
            yield SimpleNamespace(outputs=[own])


GUARD = LoadedGuard("g", "topic/any", METHODS["steer"], 1.0, 1.0)


@pytest.fixture
def served(tmp_path: Path) -> tuple[VllmService, list[Verdict]]:
    """A service over such an engine, and the verdicts that it has recorded."""
    save_tokenizer(tmp_path)
    found: list[Verdict] = []
    service = VllmService(
        LanguageModelInfo(name="tiny", engine="vllm", created=0, max_context=64),
        PromptEncoder(
            PreTrainedTokenizerFast.from_pretrained(tmp_path), vocabulary=97, max_context=64
        ),
        cast(Any, Silent([5, 6, 7])),
        end_tokens=frozenset({2}),
        capacity=1,
        queue_limit=0,
        record=lambda _request, verdict: found.append(verdict),
    )
    return service, found


ASKED = TextRowRequest("r", Prompt((5, 6)), "firm", SamplingParams(3))


def test_a_row_that_is_hung_up_before_it_has_begun_leaves(
    served: tuple[VllmService, list[Verdict]],
) -> None:
    service, found = served

    async def hang_up() -> None:
        for _ in range(2):
            (events,) = service.submit([ASKED])
            await events.aclose()
            await asyncio.sleep(0.01)

    asyncio.run(hang_up())
    assert [verdict.outcome for verdict in found] == ["pass", "pass"]
    assert [verdict.guards[0].score for verdict in found] == [None, None]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((5, 6), (Media("image", "cached", 0, 1),)),
        Prompt((5, 6), positions=((0, 1), (0, 0), (0, 0))),
    ],
)
def test_a_prompt_of_more_than_text_is_refused(
    served: tuple[VllmService, list[Verdict]], prompt: Prompt
) -> None:
    service, found = served

    async def submit() -> None:
        service.submit([replace(ASKED, prompt=prompt)])

    with pytest.raises(RequestError, match="leave them out") as caught:
        asyncio.run(submit())
    assert caught.value.param == "prompt" and found == []


def test_an_answer_without_a_verdict_is_a_failure(
    served: tuple[VllmService, list[Verdict]],
) -> None:
    service, found = served

    async def read() -> None:
        (events,) = service.submit([ASKED])
        with pytest.raises(GuardFailed):
            async for _ in events:
                pass

    asyncio.run(read())
    assert [verdict.outcome for verdict in found] == ["error"]


def test_options_that_undo_the_servers_own_are_refused() -> None:
    model = ModelConfig(
        name="fast", source="s", engine="vllm", engine_options={"served_model_name": "other"}
    )
    with pytest.raises(ModelError, match="this server sets served_model_name itself"):
        _arguments(Config(), model, "s", 64)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("service")
    save(folder)
    save_tokenizer(folder / "model")
    models = MODELS.format(all=hash_key("all"), one=hash_key("one"))
    (folder / "config.toml").write_text(models + CONFIG + HALT, "utf-8")
    command = [sys.executable, "-m", "guard", "serve", "--config", str(folder / "config.toml")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", "0", "--json"],
            env=environment(None),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith(b'{"event"'):
                break
        else:
            raise AssertionError((folder / "log").read_text("utf-8")[-5000:])
        yield Stand(folder, json.loads(line)["url"])
    finally:
        server.terminate()
        server.wait(60)


def words(number: int) -> str:
    return " ".join(f"w{token}" for token in prompt(5 + 3 * number, seed=number))


def verdict(told: dict[str, Any]) -> dict[str, Any]:
    """What must be the same whatever runs the model."""
    guards = [
        {key: value for key, value in guard.items() if key != "score"} for guard in told["guards"]
    ]
    return {"policy": told["policy"], "outcome": told["outcome"], "guards": guards}


def completed(client: OpenAI, model: str, policy: str, number: int, **more: Any) -> Any:
    about = {"model": model, "prompt": words(number), "max_tokens": 24, "temperature": 0}
    return client.completions.create(**{**about, **more}, extra_body={"guard": {"policy": policy}})


def ended(client: OpenAI, model: str, policy: str, number: int, **more: Any) -> tuple[Any, ...]:
    """Text, finish reason, usage, verdict and scores; of a refusal what is told of it."""
    try:
        reply = completed(client, model, policy, number, **more)
    except BadRequestError as refused:
        body: Any = refused.body
        told = refused.response.json()["guard"]
        return body["code"], body["message"], verdict(told), []
    (choice,) = reply.choices
    told = choice.model_extra["guard"]
    scores = [guard["score"] for guard in told["guards"]]
    return choice.text, choice.finish_reason, reply.usage, verdict(told), scores


@pytest.mark.parametrize("policy", ["none", "firm", "both", "watch", "stop", "halt"])
def test_answers_and_verdicts_are_those_of_the_other_engine(stand: Stand, policy: str) -> None:
    client = stand.client()
    outcomes = set()
    for number in range(12):
        *fast, scores = ended(client, "fast", policy, number)
        *plain, others = ended(client, "plain", policy, number)
        assert fast == plain
        assert scores == pytest.approx(others, rel=1e-4)
        outcomes.add(fast[-1]["outcome"])
    acts = {"none": [], "watch": [], "stop": ["blocked"], "halt": ["blocked"]}
    assert outcomes == {"pass", *acts.get(policy, ["steered"])}


def test_streams_say_what_whole_answers_do(stand: Stand) -> None:
    client = stand.client()
    for number in (8, 9, 10):
        (choice,) = completed(client, "fast", "both", number).choices
        parts = [*completed(client, "fast", "both", number, stream=True)]
        assert "".join(part.choices[0].text for part in parts) == choice.text
        assert verdict(parts[-1].model_extra["guard"]) == verdict(choice.model_extra["guard"])


def test_stop_strings_seeds_and_logprobs_work(stand: Stand) -> None:
    client = stand.client()
    whole = completed(client, "fast", "none", 5).choices[0].text
    stop = whole.split()[6]
    for model in ("fast", "plain"):
        cut = completed(client, model, "none", 5, stop=[stop]).choices[0]
        assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    drawn = {
        completed(client, "fast", "firm", 5, temperature=1.0, seed=seed).choices[0].text
        for seed in (1, 1, 2)
    }
    assert len(drawn) == 2
    fast, plain = (
        completed(client, model, "none", 5, logprobs=2, max_tokens=4).choices[0].logprobs
        for model in ("fast", "plain")
    )
    assert fast.tokens == plain.tokens
    assert fast.token_logprobs == pytest.approx(plain.token_logprobs, abs=1e-3)
    assert [sorted(own) for own in fast.top_logprobs] == [sorted(own) for own in plain.top_logprobs]


def test_keys_have_their_own_policies(stand: Stand) -> None:
    client = stand.client("one")
    told = client.completions.create(model="fast", prompt="w5", max_tokens=1)
    assert told.model_extra["guard"]["policy"] == "watch"  # type: ignore[index]
    with pytest.raises(Exception, match="firm") as refused:
        completed(client, "fast", "firm", 1)
    assert refused.value.status_code == 403  # type: ignore[attr-defined]


def test_what_cannot_be_had_is_refused(stand: Stand) -> None:
    client = stand.client()
    with pytest.raises(BadRequestError, match="maximum context length"):
        client.completions.create(model="fast", prompt=[5] * 400, max_tokens=300)
    with pytest.raises(BadRequestError, match="token ids must lie in"):
        client.completions.create(model="fast", prompt=[10**6], max_tokens=1)


def test_a_client_that_hangs_up_leaves_one_line(stand: Stand) -> None:
    before = len(stand.audited())
    stream = completed(stand.client(), "fast", "firm", 6, stream=True, max_tokens=300)
    next(iter(stream))
    stream.close()
    completed(stand.client(), "fast", "none", 6)
    lines = stand.audited()[before:]
    assert [line["policy"] for line in lines] == ["firm", "none"]
    assert lines[0]["tenant"] == "all" and lines[0]["guards"][0]["score"] is not None
