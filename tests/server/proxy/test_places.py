"""Guards of one policy that read different places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server.proxy.screened import answering, ask, read_stream
from tests.server.proxy.stand import Proxy, Upstream, chat_stream, proxied, served

CONFIG = """
[server]
default_policy = "p"
[[patterns]]
name = "asked"
source = "asked.toml"
[[patterns]]
name = "everywhere"
source = "everywhere.toml"
[policies.p]
guards = ["asked", "everywhere"]
action = "block"
[policies.p.screen]
looks = { asked = ["user", "tool"] }
"""


@contextmanager
def two_guards(folder: Path, upstream: Upstream) -> Iterator[Proxy]:
    for name, word in (("asked", "instructions"), ("everywhere", "secret")):
        text = f'[[words]]\nlabel = "W"\nwords = ["{word}"]\n'
        (folder / f"{name}.toml").write_text(text, "utf-8")
    with served(upstream) as port, proxied(folder, CONFIG, port) as proxy:
        yield proxy


def test_a_guard_reads_the_places_of_its_policy(tmp_path: Path) -> None:
    with two_guards(tmp_path, answering("follow the instructions")) as proxy:
        assert ask(proxy, "the instructions").status_code == 400
        assert ask(proxy, "the secret").status_code == 400
        response = ask(proxy, "hello")
        assert response.status_code == 200
        asked, everywhere = response.json()["guard"]["guards"]
        assert (asked["fired"], everywhere["fired"]) == (False, False)
        system = [{"role": "system", "content": "instructions"}]
        assert ask(proxy, "", messages=system).status_code == 200
        system = [{"role": "system", "content": "secret"}]
        assert ask(proxy, "", messages=system).status_code == 400
    with two_guards(tmp_path, answering("the secret")) as proxy:
        (choice,) = ask(proxy, "hello").json()["choices"]
        assert choice["finish_reason"] == "content_filter"


def test_streams_are_read_by_the_guards_of_responses(tmp_path: Path) -> None:
    with two_guards(
        tmp_path, Upstream(chat_stream(["follow the ", "instructions", " now"]))
    ) as proxy:
        text, events, whole = read_stream(ask(proxy, "hello", stream=True))
        assert (text, whole) == ("follow the instructions now", True)
        assert events[-1]["guard"]["outcome"] == "pass"
    with two_guards(
        tmp_path, Upstream(chat_stream(["here is ", "the secret", " of mine"]))
    ) as proxy:
        text, events, _ = read_stream(ask(proxy, "hello", stream=True))
        assert "secret" not in text
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
