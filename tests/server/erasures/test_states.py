"""An erasure over HTTP, from the request to its withdrawal, while requests run."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.certificate import read_certificate
from tests.server.erasures.stand import POLICY, ErasureServer, erasure_server, events, text_of
from tests.server.tiny_text_service import TinyTextModel


def guards_of(answer: Any) -> list[tuple[str, str]]:
    return [(each["guard"].partition("/")[2], each["action"]) for each in answer["guard"]["guards"]]


def test_requests_carry_the_guards_as_the_state_says(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        bare = server.chat()
        assert bare["guard"]["guards"] == []
        erasure = server.erase(aliases=["Story"], documents=["A tale of a tale."])
        made = server.until(erasure, "shadow")
        assert [step["state"] for step in made["history"]] == ["collecting", "fitting", "shadow"]
        assert made["judgement"] == "usable" and made["progress"] is None
        shadowed = server.chat()
        assert guards_of(shadowed) == [("tale", "observe")]
        assert shadowed["guard"]["outcome"] == "pass" and text_of(shadowed) == text_of(bare)
        moved = server.ask("POST", f"/{erasure}/state", json={"state": "in force"})
        assert moved.json()["state"] == "in force"
        steered = server.chat()
        assert guards_of(steered) == [("tale", "steer")]
        assert steered["guard"]["outcome"] == "steered" and text_of(steered) != text_of(bare)
        listing = {p["id"]: p for p in _policies(server)}
        assert listing[POLICY]["guards"] == [f"{erasure}/tale"]
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        after = server.chat()
        assert after["guard"]["guards"] == [] and text_of(after) == text_of(bare)
        assert {p["id"]: p for p in _policies(server)}[POLICY]["guards"] == []
        again = server.ask("DELETE", f"/{erasure}").json()
        assert len(again["history"]) == 5
        fired = server.ask("GET", f"/{erasure}").json()["fired"]
        once = {"requests": 1, "guards": {f"{erasure}/tale": 1}}
        assert fired == {"shadow": once, "in force": once}
        states = [line["state"] for line in server.audit()]
        assert states == ["collecting", "fitting", "shadow", "in force", "withdrawn"]


def _policies(server: ErasureServer) -> list[Any]:
    answer: list[Any] = httpx.get(f"{server.url}/guard/v1/policies").json()["data"]
    return answer


def test_running_requests_keep_their_plan_and_none_fails(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        plain = text_of(server.chat())
        seen: list[Any] = []
        over = threading.Event()

        def traffic() -> None:
            while not over.is_set():
                seen.append(server.chat())

        threads = [threading.Thread(target=traffic) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            erasure = server.erase(start="in force")
            server.until(erasure, "in force")
            time.sleep(0.1)
            server.ask("POST", f"/{erasure}/state", json={"state": "shadow"})
            server.ask("DELETE", f"/{erasure}")
            time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join(20)
        outcomes = {answer["guard"]["outcome"] for answer in seen}
        assert outcomes == {"pass", "steered"}
        for answer in seen:
            steered = any(each["action"] == "steer" for each in answer["guard"]["guards"])
            assert (text_of(answer) != plain) == steered


def test_a_stream_tells_the_progress_and_ends(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase()
        told = events(server.ask("GET", f"/{erasure}/events").text)
        assert told[-1] == {"id": erasure, "state": "shadow"}
        assert {"collecting", "fitting", "shadow"} >= {event["state"] for event in told}
        assert any(event.get("stage") for event in told)
        again = events(server.ask("GET", f"/{erasure}/events").text)
        assert again == told[-1:]


def test_a_silent_stream_is_kept_alive_and_ends_with_the_server(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    bodies: list[str] = []
    with erasure_server(tiny_model, tmp_path, keep_alive_s=0.1) as server:
        slow = server.erase("Slow")
        _pid(server, slow)
        reader = threading.Thread(
            target=lambda: bodies.append(server.ask("GET", f"/{slow}/events").text)
        )
        reader.start()
        time.sleep(0.5)
    reader.join(5)
    (body,) = bodies
    assert ": keep-alive" in body
    assert events(body)[-1]["state"] == "fitting"


def test_a_fit_that_ends_the_server_again_and_again_is_given_up(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        slow = server.erase("Slow")
        server.until(slow, "fitting")
    path = tmp_path / "erasures" / slow / "erasure.json"
    record = json.loads(path.read_text())
    assert record["attempts"] == 0, "a stop is no end"
    record["attempts"] = 4
    path.write_text(json.dumps(record))
    with erasure_server(tiny_model, tmp_path) as server:
        assert "the server ended 4 times" in server.until(slow, "failed")["reason"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Unknown", "tiny seems to know nothing of 'Unknown'"),
        ("Crash", "the process of the fit ended with status 3: fit.log in its folder has why"),
    ],
)
def test_a_fit_that_fails_says_why_and_the_next_one_runs(
    tiny_model: TinyTextModel, tmp_path: Path, name: str, reason: str
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        failed = server.erase(name)
        following = server.erase()
        assert server.until(failed, "failed")["reason"] == reason
        assert events(server.ask("GET", f"/{failed}/events").text)[-1]["reason"] == reason
        server.until(following, "shadow")
        conflict = server.ask("POST", f"/{failed}/state", json={"state": "in force"})
        assert conflict.status_code == 409 and conflict.json()["error"]["code"] == "invalid_state"


def test_guards_that_do_not_fit_the_model_never_get_into_a_policy(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path, artifact="other") as server:
        erasure = server.erase()
        assert "was fitted on" in server.until(erasure, "failed")["reason"]
        assert server.chat()["guard"]["guards"] == []


def test_a_fit_that_is_withdrawn_ends_at_once(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        slow = server.erase("Slow")
        pid = _pid(server, slow)
        following = server.erase()
        assert server.ask("DELETE", f"/{slow}").json()["state"] == "withdrawn"
        server.until(following, "shadow")
        assert not _runs(pid)
        assert server.ask("GET", f"/{slow}").json()["state"] == "withdrawn"


def test_what_was_not_finished_is_fitted_after_a_restart_and_the_rest_is_loaded(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        in_force = server.erase(start="in force")
        server.until(in_force, "in force")
        server.chat()
        slow = server.erase("Slow")
        pid = _pid(server, slow)
    assert not _runs(pid)
    (tmp_path / "erasures" / slow / "go").touch()
    with erasure_server(tiny_model, tmp_path) as server:
        assert guards_of(server.chat())[0] == ("tale", "steer")
        history = [step["state"] for step in server.until(slow, "shadow")["history"]]
        assert history == ["collecting", "fitting", "collecting", "fitting", "shadow"]
        fired = server.ask("GET", f"/{in_force}").json()["fired"]
        assert fired["in force"]["requests"] == 2
        path = tmp_path / "certificate.json"
        path.write_bytes(server.ask("GET", f"/{in_force}/certificate").content)
        assert read_certificate(path).fired["in force"].requests == 2


def _pid(server: ErasureServer, erasure: str) -> int:
    path = server.folder / "erasures" / erasure / "pid"
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    server.until(erasure, "fitting")
    return int(path.read_text())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
