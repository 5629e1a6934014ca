"""What the scripted model says, by the prompt, and under a grammar."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from guard.config.schema import load_config
from server.app import create_app
from server.services.build import build_services
from tests.conformance.scripted_model import GREETING, save_scripted_model
from tests.server.live_server import serve_app

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MAIL: Any = {"type": "function", "function": {"name": "send_mail", "parameters": SCHEMA}}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("scripted")
    save_scripted_model(folder / "model")
    (folder / "config.toml").write_text('[[models]]\nname = "m"\nsource = "./model"\n')
    config = load_config(folder / "config.toml")
    services = build_services(config, lambda request, verdict: None)
    with serve_app(create_app(config, services), services) as (url, _):
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def choice(client: Any, text: str, **options: Any) -> Any:
    ask = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="m", messages=ask, **options).choices[0]


def test_it_greets_tells_and_calls_by_itself(client: Any) -> None:
    greeted = choice(client, "Say hello.")
    assert (greeted.message.content, greeted.finish_reason) == (GREETING, "stop")
    told = choice(client, "Tell a tale.", max_tokens=300)
    assert told.finish_reason == "length"
    (call,) = choice(client, "Send a mail.", tools=[MAIL]).message.tool_calls
    assert call.function.name == "send_mail" and '"copies": 2' in call.function.arguments


def test_under_a_grammar_it_takes_the_shortest_way(client: Any) -> None:
    for _ in range(5):  # at the temperature 1
        formed = choice(client, "Give an object.", response_format=FORM)
        assert formed.message.content.replace(" ", "") == '{"name":"a","age":1}'
    forced = choice(client, "Say hello.", tools=[MAIL], tool_choice="required")
    (call,) = forced.message.tool_calls
    assert call.function.arguments.replace(" ", "") == '{"name":"a","age":1}'
