"""`python -m tests.golden.record --checkout PATH --out FILE`: the outcomes of a checkout.

It drives the checkout through the command line and HTTP alone, so that the same recorder runs
against checkouts whose modules have other names. The models smollm2, emoji and minilm are added
where they are not there yet. Everything runs on one thread of the CPU, in float32.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx

from tests.golden.checkout import Checkout
from tests.golden.expected import write_recording
from tests.golden.outcomes import outcome_of
from tests.golden.requests import Request, read_requests

CONFIG = Path(__file__).with_name("config.toml")
MODELS = ("smollm2", "emoji", "minilm")
PACKAGES = ("torch", "numpy", "transformers", "diffusers", "onnxruntime")
BASELINES = {
    "safree": ("--count", "100"),
    "nearest": ("--count", "100"),
    "safe-guidance": (),
    "negative-prompt": (),
    "uce": (),
}
"""Training-free guards, which are not shipped: method → options of `guard fit`."""

Recording = dict[str, Any]


def record(checkout: Checkout) -> Recording:
    """Digests, fitted baselines and outcomes of all requests."""
    for model in MODELS:
        checkout.guard("models", "add", model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "examples").symlink_to(checkout.root / "examples")
        config = folder / "config.toml"
        config.write_text(CONFIG.read_text())
        return {
            "arithmetic": arithmetic(),
            "artifacts": {name: _artifact(checkout, name) for name in checkout.artifacts()},
            "fitted": _fit(checkout, folder / "baselines"),
            "outcomes": _ask_all(checkout, config),
        }


def arithmetic() -> dict[str, str]:
    """What decides on the last bits of a result: the processor and the libraries."""
    return {"cpu": _processor(), **{name: version(name) for name in PACKAGES}}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text().split("\n\n")[0]
    fields: dict[str, str] = {}
    for line in first.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    numbers = (
        f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields
    )
    return ", ".join((fields.get("model name", platform.machine()), *numbers))


def _artifact(checkout: Checkout, name: str) -> dict[str, str]:
    contents = checkout.inspect(name)
    return {key: contents[key] for key in ("digest", "method", "concept")}


def _fit(checkout: Checkout, folder: Path) -> dict[str, str]:
    """Fit the baselines into the folder; SHA-256 of the tensors of each."""
    hashes = {}
    for method, options in BASELINES.items():
        artifact = folder / f"knife-{method}.safetensors"
        concept = "examples/emoji/guards/knife.json"
        given = ("--model", "emoji", "--concept-file", concept, "--device", "cpu")
        checkout.guard("fit", method, *given, *options, "--out", artifact)
        # the metadata, and so the digest, hold the date of the fit
        hashes[method] = checkout.inspect(artifact)["tensors_sha256"]
    return hashes


def _ask_all(checkout: Checkout, config: Path) -> dict[str, Any]:
    sent: dict[str, httpx.Response] = {}
    with checkout.serving(config) as url, httpx.Client(base_url=url, timeout=600) as client:
        for batch in _batches(read_requests()):
            prepared = [(request, _body(request, sent)) for request in batch]
            with ThreadPoolExecutor(len(batch)) as pool:
                responses = pool.map(lambda pair: client.post(pair[0].path, json=pair[1]), prepared)
                sent |= zip((request.name for request in batch), responses, strict=True)
    return {name: outcome_of(response) for name, response in sent.items()}


def _batches(requests: list[Request]) -> Iterator[list[Request]]:
    """Requests that are sent at once."""
    for batch, members in groupby(requests, lambda request: request.batch):
        if batch is not None:
            yield list(members)
        else:
            yield from ([request] for request in members)


def _body(request: Request, sent: dict[str, httpx.Response]) -> dict[str, Any]:
    if request.source is None:
        return request.body
    png = sent[request.source].json()["data"][0]["b64_json"]
    return request.body | {"image": f"data:image/png;base64,{png}"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Record what a checkout answers.")
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the checkout")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    recording = record(Checkout(given.checkout.resolve()))
    write_recording(recording, given.out)
    print(f"{len(recording['outcomes'])} outcomes in {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
