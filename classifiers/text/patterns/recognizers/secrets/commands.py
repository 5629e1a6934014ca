"""PASSWORD in the options of a command: curl -u user:password, sshpass -p password."""

from __future__ import annotations

import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.secrets.addresses import judge_password

_OPTIONS: Final = r"""[ \t](?:[^\n|;&]{0,100}[ \t])?"""
_COMMANDS: Final = (
    rf"""curl{_OPTIONS}(?:-u[ \t]{{0,3}}|--user(?:=|[ \t]{{1,3}}))["']?[^\s:/"'<>]{{1,64}}:""",
    r"""sshpass[ \t]{1,3}-p[ \t]{0,3}["']?""",
    rf"""mysql(?:dump|admin|import)?{_OPTIONS}-p["']?""",
    rf"""redis-cli{_OPTIONS}(?:-a|--pass)[ \t]{{1,3}}["']?""",
)
_ELSE: Final = re.compile(
    r"(?:[0-9.]+:)?[0-9]+:[0-9]+(?:/[a-z]+)?$|(?:option|flag|argument|parameter|switch)(?:e?s)?\b"
    r"|(?:ython|erl|assword|lugin|rotocol|rompt|ager|ool|ath|orts?)[0-9.]*[.,:;]?$",
    re.IGNORECASE,
)
"""Ports of a container that has a command's name, sentences about an option, and words in p with a
hyphen before them: "mysql -python"."""


def _judge(candidate: Candidate) -> Finding | None:
    return None if _ELSE.match(candidate.value) else judge_password(candidate)


COMMAND_PASSWORDS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=(
        rf"""(?:^|[^A-Za-z0-9_-])(?:{"|".join(_COMMANDS)})(?P<value>[^\s"'\x60<>]{{4,128}})"""
    ),
    judge=_judge,
    longest=360,
    raw=True,
)
