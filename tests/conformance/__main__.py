"""Run the matrix: `python -m tests.conformance --help` tells what may be left out."""

from __future__ import annotations

import argparse
import sys

from tests.conformance.clients import CLIENTS, Client
from tests.conformance.features import FEATURES, NONE, PRIVATE, Feature, Seen, Wrong
from tests.conformance.processes import (
    BUILD,
    KEYS,
    Driver,
    DriverFailed,
    Proxy,
    proxy_before,
    version_of,
    why_not,
)
from tests.conformance.report import MISSING, OK, Cell, failures, write_json, write_page
from tests.conformance.upstream.stub import MODEL, Stub
from tests.server.proxy.stand import served


def main() -> int:
    """0: everything holds; 1: something does not; 2: clients were left out."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--client", default="", help="only clients with this in their name")
    parser.add_argument("--feature", default="", help="only features with this in their name")
    parser.add_argument("--policy", choices=[NONE, PRIVATE], help="only this policy")
    chosen = parser.parse_args()
    clients = [client for client in CLIENTS if chosen.client in client.title]
    features = [feature for feature in FEATURES if chosen.feature in feature.name]
    policies = [chosen.policy] if chosen.policy else [NONE, PRIVATE]
    if not clients or not features:
        parser.error("no client or no feature has that in its name")
    cells: list[Cell] = []
    left_out: list[str] = []
    stub = Stub()
    with served(stub.app) as port, proxy_before(port) as proxy:
        for client in clients:
            if reason := why_not(client):
                left_out.append(f"{client.title} is left out: {reason}")
                continue
            cells += _row(client, features, policies, stub, proxy)
    write_json(cells, BUILD / "matrix.json")
    write_page(cells, BUILD / "matrix.md")
    wrong = failures(cells)
    for line in [*wrong, *left_out]:
        print(line)
    print(f"{len(cells) - len(wrong)} of {len(cells)} hold; the matrix is {BUILD / 'matrix.md'}")
    return 1 if wrong else 2 if left_out else 0


def _row(
    client: Client, features: list[Feature], policies: list[str], stub: Stub, proxy: Proxy
) -> list[Cell]:
    driver, version, cells = Driver(client), version_of(client), []
    try:
        for policy in policies:
            for feature in features:
                outcome, holds = _outcome(client, feature, policy, driver, stub, proxy)
                cells.append(Cell(client.title, version, policy, feature.name, outcome, holds))
            row = [cell for cell in cells if cell.policy == policy]
            holding = sum(cell.holds for cell in row)
            print(f"{client.title} {version}, {policy}: {holding} of {len(row)}", flush=True)
    finally:
        driver.close()
    return cells


def _outcome(
    client: Client, feature: Feature, policy: str, driver: Driver, stub: Stub, proxy: Proxy
) -> tuple[str, bool]:
    if reason := client.lacks.get(feature.name):
        return reason, True
    stub.play(feature.script)
    logged = proxy.log.stat().st_size
    command = {
        "do": feature.do or client.probe,
        "api": client.api,
        "url": proxy.url,
        "key": feature.key or KEYS[policy],
        "model": MODEL,
        "prompt": feature.prompt,
        "stream": feature.stream,
        "timeout": feature.timeout,
    }
    try:
        result = driver.ask(command)
        if "missing" in result:
            return result["missing"] or MISSING, True
        feature.check(Seen(client, policy, result, stub))
    except (Wrong, DriverFailed) as wrong:
        return str(wrong), False
    if errors := proxy.errors_since(logged):
        return f"the proxy logged: {errors[0]}", False
    return OK, True


if __name__ == "__main__":
    sys.exit(main())
