"""Run the matrix: `python -m tests.conformance --help` tells what may be left out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from tests.conformance.clients import CLIENTS, Client
from tests.conformance.feature import Feature
from tests.conformance.processes import BUILD, Driver, DriverFailed, version_of, why_not
from tests.conformance.report import MISSING, OK, Cell, failures, write_json, write_page
from tests.conformance.seen import NONE, PRIVATE, Wrong
from tests.conformance.upstream.stub import MODEL
from tests.conformance.ways.interface import KEYS, Way
from tests.conformance.ways.proxied import PROXY, proxied
from tests.conformance.ways.served import (
    BEHIND,
    SCRIPTED,
    SERVE,
    served,
    served_behind_a_proxy,
)

_WAYS: dict[str, Callable[[str], AbstractContextManager[Way]]] = {
    PROXY: lambda _source: proxied(),
    SERVE: served,
    BEHIND: served_behind_a_proxy,
}


def main() -> int:
    """0: everything holds; 1: something does not; 2: clients were left out."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--way", choices=[*_WAYS], help="only this way")
    parser.add_argument("--client", default="", help="only clients with this in their name")
    parser.add_argument("--feature", default="", help="only features with this in their name")
    parser.add_argument("--policy", choices=[NONE, PRIVATE], help="only this policy, by the proxy")
    parser.add_argument("--model", default=SCRIPTED, help="the source of a model to be served")
    chosen = parser.parse_args()
    clients = [client for client in CLIENTS if chosen.client in client.title]
    if not clients:
        parser.error("no client has that in its name")
    left_out = {
        client.title: f"{client.title} is left out: {reason}"
        for client in clients
        if (reason := why_not(client))
    }
    clients = [client for client in clients if client.title not in left_out]
    cells: list[Cell] = []
    for name in [chosen.way] if chosen.way else _WAYS:
        with _WAYS[name](chosen.model) as way:
            features = [feature for feature in way.features if chosen.feature in feature.name]
            policies = [chosen.policy] if chosen.policy else [NONE, PRIVATE]
            if name != PROXY:
                policies = [NONE]  # what other policies do are features of their own there
            for client in clients:
                cells += _row(client, features, policies, way)
    write_json(cells, BUILD / "matrix.json")
    write_page(cells, BUILD / "matrix.md")
    wrong = failures(cells)
    for line in [*wrong, *left_out.values()]:
        print(line)
    print(f"{len(cells) - len(wrong)} of {len(cells)} hold; the matrix is {BUILD / 'matrix.md'}")
    return 1 if wrong else 2 if left_out else 0


def _row(client: Client, features: list[Feature], policies: list[str], way: Way) -> list[Cell]:
    driver, version, cells = Driver(client), version_of(client), list[Cell]()
    cell = partial(Cell, client.title, version, way.name)
    try:
        for policy in policies:
            row = [
                cell(policy, feature.name, *_outcome(client, feature, policy, driver, way))
                for feature in features
            ]
            holding = sum(each.holds for each in row)
            print(
                f"{way.name}: {client.title} {version}, {policy}: {holding} of {len(row)}",
                flush=True,
            )
            cells += row
    finally:
        driver.close()
    return cells


def _outcome(
    client: Client, feature: Feature, policy: str, driver: Driver, way: Way
) -> tuple[str, bool]:
    if reason := client.lacks.get(feature.name):
        return reason, True
    way.begin(feature)
    logged = way.faced.log.stat().st_size
    command = {
        "do": feature.do or client.probe,
        "api": client.api,
        "url": way.faced.url,
        "key": feature.key or KEYS[policy],
        "model": MODEL,
        "prompt": feature.prompt,
        "stream": feature.stream,
        "timeout": feature.timeout,
        "forced": feature.forced,
        "retries": feature.retries,
    }
    try:
        result = driver.ask(command)
        if "missing" in result:
            return result["missing"] or MISSING, True
        feature.check(way.seen(client, policy, result))
    except (Wrong, DriverFailed) as wrong:
        return str(wrong), False
    if errors := way.faced.errors_since(logged):
        return f"the server logged: {errors[0]}", False
    return OK, True


if __name__ == "__main__":
    sys.exit(main())
