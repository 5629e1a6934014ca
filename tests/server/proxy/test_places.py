"""Guards of one policy that look at different places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server.proxy.stand import Proxy, Upstream, proxied, served, spoken
from tests.server.proxy.test_screening import ask, said, streamed

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
def standing(folder: Path, upstream: Upstream) -> Iterator[Proxy]:
    for name, word in (("asked", "instructions"), ("everywhere", "secret")):
        text = f'[[words]]\nlabel = "W"\nwords = ["{word}"]\n'
        (folder / f"{name}.toml").write_text(text, "utf-8")
    with served(upstream) as port, proxied(folder, CONFIG, port) as proxy:
        yield proxy


def test_each_reads_where_it_looks(tmp_path: Path) -> None:
    with standing(tmp_path, said("follow the instructions")) as proxy:
        assert ask(proxy, "the instructions").status_code == 400
        assert ask(proxy, "the secret").status_code == 400
        answer = ask(proxy, "hello")
        assert answer.status_code == 200
        asked, everywhere = answer.json()["guard"]["guards"]
        assert (asked["fired"], everywhere["fired"]) == (False, False)
        system = [{"role": "system", "content": "instructions"}]
        assert ask(proxy, "", messages=system).status_code == 200
        system = [{"role": "system", "content": "secret"}]
        assert ask(proxy, "", messages=system).status_code == 400
    with standing(tmp_path, said("the secret")) as proxy:
        assert ask(proxy, "hello").status_code == 400


def test_streams_are_read_by_who_looks_at_them(tmp_path: Path) -> None:
    with standing(tmp_path, Upstream(spoken(["follow the ", "instructions", " now"]))) as proxy:
        text, events, whole = streamed(ask(proxy, "hello", stream=True))
        assert (text, whole) == ("follow the instructions now", True)
        assert events[-1]["guard"]["outcome"] == "pass"
    with standing(tmp_path, Upstream(spoken(["here is ", "the secret", " of mine"]))) as proxy:
        text, events, _ = streamed(ask(proxy, "hello", stream=True))
        assert "secret" not in text
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
