"""A text and an image model as two replicas of Ray Serve, updated under traffic."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from guard.errors import ConfigError
from tests.server.tiny_pipeline import save_pipeline
from tests.server.tiny_text_service import TinyTextModel

ray = pytest.importorskip("ray", reason="needs pip install 'inference-guard[ray]'")
MODEL = '[[models]]\nname = "m"\nsource = "./m"\nengine = "transformers"\n'
MESSAGES: Any = [{"role": "user", "content": "hello"}]
PATIENCE_S = 400.0


def test_erasures_are_of_one_server(tmp_path: Path) -> None:
    from server.ray import app

    path = tmp_path / "config.toml"
    path.write_text(
        f'[server]\nadmin_hash = "sha256:{"0" * 64}"\n[erasures]\nfolder = "e"\n{MODEL}'
    )
    with pytest.raises(ConfigError, match="erasures"):
        app({"config": path})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "config: Field required"),
        ({"config": "config.toml", "replicas": "two"}, "replicas: Input should be a valid integer"),
        ({"config": "config.toml", "workers": "2"}, "workers: Extra inputs are not permitted"),
        ({"config": "config.toml"}, r"add \[\[models\]\]"),
    ],
)
def test_arguments_that_do_not_hold_are_named(
    arguments: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.ray import app

    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text("[server]\n")
    with pytest.raises(ConfigError, match=reason):
        app(arguments)


def test_the_command_of_ray_gives_strings(tmp_path: Path) -> None:
    """`serve run server.ray:app config=... replicas=2`, as Ray calls the builder."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from server.ray import app

    path = tmp_path / "config.toml"
    path.write_text(MODEL)
    application: Any = call_user_app_builder_with_args_if_necessary(
        app, {"config": str(path), "replicas": "2", "cpus": "0.5"}
    )
    deployment = application._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options["num_cpus"] == 0.5


@contextmanager
def running_ray(port: int) -> Iterator[Any]:
    """Ray and its HTTP proxy, on this machine alone."""
    # processes start slowly on a machine that is busy
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "120"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray spells it
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray import serve

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    try:
        eventually(lambda: _is_started(serve, port))
        yield serve
        serve.shutdown()
    finally:
        ray.shutdown()


def _is_started(serve: Any, port: int) -> bool:
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
    except TimeoutError:
        return False  # Ray waits for a minute only
    return True


class Traffic:
    """Clients that ask without a pause; `statuses` counts what they got, by policy."""

    def __init__(self, url: str, clients: int = 3) -> None:
        self._url, self._stop = url, threading.Event()
        self.statuses: Counter[tuple[int | str, str]] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"{self._url}/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__, ""] += 1
                    continue
                policy = answer.headers.get("x-guard-policy", "")
                self.statuses[answer.status_code, policy] += 1


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
def test_two_replicas_are_updated_under_traffic_without_a_failed_request(tmp_path: Path) -> None:
    from benchmarks.processes import free_port
    from server.ray import DEPLOYMENT, app

    model = TinyTextModel(tmp_path)
    save_pipeline(tmp_path / "pictures")
    path = model.write_config(tmp_path)
    image_model = (
        f'[[models]]\nname = "pictures"\nengine = "diffusers"\nsource = "{tmp_path / "pictures"}"\n'
        'device = "cpu"\nsteps = 2\n'
    )
    path.write_text(path.read_text() + image_model)
    arguments = {"config": path, "replicas": 2, "drain_s": 30}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running_ray(port) as serve:
        serve.run(app(arguments), name="guard", route_prefix="/")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, stream=True
        )
        assert sum(1 for _ in stream) > 2
        image = client.images.generate(model="pictures", prompt="a cat", response_format="b64_json")
        assert image.data and image.data[0].b64_json
        with Traffic(url) as traffic:
            eventually(lambda: traffic.statuses[200, "none"] > 20)
            changed = path.read_text().replace(
                "[server]", '[server]\ndefault_policy = "flag-always"'
            )
            path.write_text(changed)
            serve.run(app(arguments), name="guard", route_prefix="/")
            settled = sum(traffic.statuses.values())
            eventually(lambda: sum(traffic.statuses.values()) > settled + 20)
            before = traffic.statuses[200, "none"]
            flagged = traffic.statuses[200, "flag-always"]
            eventually(lambda: traffic.statuses[200, "flag-always"] > flagged + 20)
            assert traffic.statuses[200, "none"] == before
        assert set(traffic.statuses) == {(200, "none"), (200, "flag-always")}
        status = serve.status().applications["guard"].deployments[DEPLOYMENT]
        assert status.replica_states == {"RUNNING": 2}
        lines = (tmp_path / "audit.jsonl").read_text().splitlines()
        # the answers to the traffic, and the two before it
        assert len(lines) == sum(traffic.statuses.values()) + 2
        print(dict(traffic.statuses))
