"""vLLM's server with the plugin, asked by OpenAI's client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import APIError, BadRequestError, OpenAI  # noqa: E402

from tests.vllm.checkpoint import CONFIG  # noqa: E402
from tests.vllm.standing import Stand, asked, serving, words  # noqa: E402


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with serving(tmp_path_factory.mktemp("serve")) as made:
        yield made


@pytest.fixture
def client(stand: Stand) -> OpenAI:
    return stand.client


def test_answers_come_with_their_verdict(client: OpenAI) -> None:
    ends = set()
    for number in range(20):
        reply = client.completions.create(
            model="tiny",
            prompt=words(number),
            max_tokens=4,
            temperature=0,
            extra_body=asked("stop"),
        )
        told = reply.model_extra["guard"]  # type: ignore[index]
        (choice,) = reply.choices
        assert choice.model_extra["guard"] == told  # type: ignore[index]
        assert told["policy"] == "stop" and told["model"] == "tiny"
        blocked = told["outcome"] == "blocked"
        assert choice.finish_reason == ("content_filter" if blocked else "length")
        assert bool(choice.text) != blocked
        ends.add(choice.finish_reason)
    assert ends == {"content_filter", "length"}


def test_chat_streams_what_it_says_at_once(client: OpenAI) -> None:
    outcomes = set()

    def chat(policy: str, number: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": words(number)}]
        about = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0}
        whole = client.chat.completions.create(**about, extra_body=asked(policy))
        parts = client.chat.completions.create(**about, stream=True, extra_body=asked(policy))
        chunks = [part for part in parts if part.choices]
        streamed = [part.choices[0] for part in chunks]
        text = "".join(part.delta.content or "" for part in streamed)
        told, ended = (
            {**own.model_extra["guard"]}  # type: ignore[index]
            for own in (whole, chunks[-1])
        )
        for own in (told, ended):
            del own["request_id"], own["elapsed_ms"]
        assert told == ended and told["policy"] == policy
        assert not any((part.model_extra or {}).get("guard") for part in chunks[:-1])
        outcomes.add(told["outcome"])
        (choice,) = whole.choices
        assert text == (choice.message.content or "")
        assert streamed[-1].finish_reason == choice.finish_reason
        return text, choice.finish_reason

    bare, steered = (
        [chat(policy, number) for number in range(8, 18)] for policy in ("none", "firm")
    )
    assert outcomes == {"pass", "steered"}
    assert bare != steered
    assert any(one == other for one, other in zip(bare, steered, strict=True))


def test_an_unknown_policy_is_a_400(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="there is no policy 'ghost'") as refused:
        client.completions.create(
            model="tiny", prompt="w5", max_tokens=1, extra_body=asked("ghost")
        )
    assert refused.value.status_code == 400


@pytest.mark.parametrize(
    "hostile",
    [
        {"guard_policy": "x" * 2_000_000},
        {"guard_policy": ["none"]},
        {"guard_policy": 7},
        {"guard_policy": {"a": {"b": [1]}}},
        {"guard_policy": None},
        ["guard_policy"],
    ],
)
def test_hostile_arguments_are_refused_alone(client: OpenAI, hostile: object) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(
            model="tiny", prompt="w5", max_tokens=1, extra_body={"vllm_xargs": hostile}
        )
    assert len(str(refused.value)) < 5000
    client.completions.create(model="tiny", prompt="w5", max_tokens=1)


def test_nobody_chooses_a_plan_past_the_policies(client: OpenAI) -> None:
    extra = {"vllm_xargs": {"guard_policy": "firm", "guard_plan": "0" * 64}}
    reply = client.completions.create(model="tiny", prompt="w5", max_tokens=1, extra_body=extra)
    assert reply.model_extra["guard"]["policy"] == "firm"  # type: ignore[index]


def test_each_choice_has_a_verdict_of_its_own(client: OpenAI) -> None:
    asking = {"model": "tiny", "prompt": [words(3), words(4)], "n": 2, "max_tokens": 3}
    whole = client.completions.create(**asking, extra_body=asked("firm"))
    told = [choice.model_extra["guard"] for choice in whole.choices]  # type: ignore[index]
    assert len({own["request_id"] for own in told}) == 4
    assert [own["guards"][0]["score"] for own in told[:2]] == [told[0]["guards"][0]["score"]] * 2
    assert told[0]["guards"][0]["score"] != told[2]["guards"][0]["score"]
    ended = {}
    for part in client.completions.create(**asking, stream=True, extra_body=asked("firm")):
        for choice in part.choices:
            if choice.finish_reason:
                ended[choice.index] = choice.model_extra["guard"]  # type: ignore[index]
    scores = [own["guards"][0]["score"] for own in told]
    assert [ended[i]["guards"][0]["score"] for i in range(4)] == pytest.approx(scores)


def test_structured_answers_stay_structured(client: OpenAI) -> None:
    said = set()
    for number in range(6):
        extra = {**asked("both"), "structured_outputs": {"choice": ["w7", "w8", "w9"]}}
        del extra["ignore_eos"]
        reply = client.completions.create(
            model="tiny", prompt=words(number), max_tokens=4, temperature=0, extra_body=extra
        )
        said.add(reply.choices[0].text.strip())
        assert reply.model_extra["guard"]["policy"] == "both"  # type: ignore[index]
    assert said <= {"w7", "w8", "w9"}


def test_responses_have_their_verdict(client: OpenAI) -> None:
    about = {"model": "tiny", "input": words(8), "max_output_tokens": 16, "temperature": 0}
    extra = {"vllm_xargs": {"guard_policy": "firm"}}
    whole = client.responses.create(**about, extra_body=extra)
    told = whole.model_extra["guard"]  # type: ignore[index]
    assert told["policy"] == "firm" and told["guards"]
    last = list(client.responses.create(**about, stream=True, extra_body=extra))[-1]
    ended = last.response.model_extra["guard"]
    assert ended["guards"] == told["guards"]


def test_messages_have_their_verdict(stand: Stand) -> None:
    asking = {
        "model": "tiny",
        "messages": [{"role": "user", "content": words(8)}],
        "max_tokens": 4,
        "vllm_xargs": {"guard_policy": "firm"},
    }
    body = json.dumps(asking).encode()
    call = Request(f"{stand.url}/v1/messages", body, {"Content-Type": "application/json"})
    with urlopen(call, timeout=60) as reply:
        told = json.loads(reply.read())["guard"]
    body = json.dumps(asking | {"stream": True}).encode()
    call = Request(f"{stand.url}/v1/messages", body, {"Content-Type": "application/json"})
    with urlopen(call, timeout=60) as reply:
        events = [json.loads(line[6:]) for line in reply if line.startswith(b"data: {")]
    (ended,) = [event for event in events if event["type"] == "message_delta"]
    assert ended["guard"]["guards"] == told["guards"]


def test_each_request_has_one_line_and_is_counted(stand: Stand) -> None:
    before, counted = len(stand.audited()), _counted(stand)
    client = stand.client
    for policy in ("none", "firm", "stop"):
        # ends in the front end, where a stop string is met
        client.completions.create(
            model="tiny", prompt=words(5), max_tokens=8, stop=["w"], extra_body=asked(policy)
        )
    stream = client.completions.create(
        model="tiny", prompt=words(6), max_tokens=400, stream=True, extra_body=asked("firm")
    )
    next(iter(stream))
    stream.close()
    for _ in range(100):
        if len(lines := stand.audited()[before:]) == 4:
            break
        time.sleep(0.1)
    assert [line["policy"] for line in lines] == ["none", "firm", "stop", "firm"]
    assert all(line["outcome"] != "error" and line["request_id"] for line in lines)
    assert all(guard["score"] is not None for line in lines for guard in line["guards"])
    assert _counted(stand) - counted == 4


def _counted(stand: Stand) -> float:
    with urlopen(f"{stand.url}/metrics", timeout=10) as reply:
        found = [line.split() for line in reply.read().decode().splitlines()]
    return sum(
        float(line[-1]) for line in found if line[0].startswith("inference_guard_verdicts_total")
    )


def test_an_admin_changes_policies_while_answers_run(stand: Stand) -> None:
    client = stand.client
    assert stand.reload("somebody else's")[0] == 401
    stand.configure("nonsense = 1")
    status, told = stand.reload()
    assert status >= 400 and "nonsense" in told["error"]["message"]
    stream = client.completions.create(
        model="tiny", prompt=words(6), max_tokens=300, stream=True, extra_body=asked("watch")
    )
    parts = iter(stream)
    next(parts)
    stand.configure(CONFIG.replace("policies.watch", "policies.fresh"))
    status, told = stand.reload()
    assert status == 200 and "fresh" in told["policies"] and "watch" not in told["policies"]
    with pytest.raises(BadRequestError, match="there is no policy 'watch'"):
        client.completions.create(
            model="tiny", prompt="w5", max_tokens=1, extra_body=asked("watch")
        )
    fresh = client.completions.create(
        model="tiny", prompt="w5", max_tokens=1, extra_body=asked("fresh")
    )
    assert fresh.model_extra["guard"]["policy"] == "fresh"  # type: ignore[index]
    last = [part for part in parts if part.choices][-1]
    assert last.model_extra["guard"]["policy"] == "watch"  # type: ignore[index]
    stand.configure()
    assert stand.reload()[0] == 200


def test_requests_of_a_worker_that_is_killed_have_their_lines(stand: Stand) -> None:
    # the last test of this server
    before = len(stand.audited())
    stream = stand.client.completions.create(
        model="tiny", prompt=words(6), max_tokens=400, stream=True, extra_body=asked("firm")
    )
    next(iter(stream))
    ps = subprocess.run(
        ["ps", "--ppid", str(stand.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in ps.stdout.splitlines():
        if "resource_tracker" not in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    with pytest.raises(APIError):
        list(stream)
    (line,) = stand.audited()[before:]
    assert line["outcome"] == "error" and line["policy"] == "firm"
