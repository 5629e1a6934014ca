"""Configurations with one policy that screens text, in front of a model or an upstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EMAIL = r"[a-z]{1,20}@[a-z]{1,20}\.com"
_CONFIG = """
[server]
default_policy = "p"
{server}
[[patterns]]
name = "list"
source = "{source}"
[policies.p]
guards = ["list"]
action = "{action}"
{policy}
[policies.p.screen]
{screen}
"""


def screen_config(
    action: str = "block",
    screen: str = "",
    *,
    source: str = "secrets",
    server: str = "",
    policy: str = "",
) -> str:
    """A policy with one list of patterns; the other arguments are lines of their tables."""
    return _CONFIG.format(action=action, screen=screen, source=source, server=server, policy=policy)


def write_list(folder: Path, words: Sequence[str] = ("forbidden thing",)) -> str:
    """A list of these words and of mail addresses; returns its name as a `source`."""
    listed = ", ".join(f'"{word}"' for word in words)
    (folder / "list.toml").write_text(
        f'[[words]]\nlabel = "BAD"\nwords = [{listed}]\n'
        f"[[regex]]\nlabel = \"EMAIL\"\npattern = '{EMAIL}'\n"
    )
    return "list.toml"
