"""PASSWORD in the options of a command: curl -u user:password, sshpass -p password."""

from __future__ import annotations

from typing import Final

from classifiers.text.patterns.candidates import Expression
from classifiers.text.patterns.recognizers.secrets.addresses import judge_password

_OPTIONS: Final = r"""[ \t](?:[^\n|;&]{0,100}[ \t])?"""
_COMMANDS: Final = (
    rf"""curl{_OPTIONS}(?:-u[ \t]{{0,3}}|--user(?:=|[ \t]{{1,3}}))["']?[^\s:/"'<>]{{1,64}}:""",
    r"""sshpass[ \t]{1,3}-p[ \t]{0,3}["']?""",
    rf"""mysql(?:dump|admin|import)?{_OPTIONS}-p["']?""",
    rf"""redis-cli{_OPTIONS}(?:-a|--pass)[ \t]{{1,3}}["']?""",
)

COMMAND_PASSWORDS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=(
        rf"""(?:^|[^A-Za-z0-9_-])(?:{"|".join(_COMMANDS)})(?P<value>[^\s"'\x60<>]{{4,128}})"""
    ),
    judge=judge_password,
    longest=360,
    raw=True,
)
