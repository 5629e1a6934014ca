"""A server of many tenants: `python -m benchmarks.many_tenants --tenants 1000 --guards 100`.

Each tenant is an organisation with a team, a key, and a policy of its own with all guards, which
its requests must have. Beside it the same server with one
tenant whose policy has no guards. The model has the layers and the width of SmolLM2 and random
weights, the guards are copies of a shipped one with other gates: good for time and memory alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from benchmarks.processes import free_port, running
from benchmarks.tiny_language import SMOLLM2, write_tiny
from guard.artifact import Artifact
from guard.config.schema import load_config
from guard.tenants.directory import store_of
from guard.tenants.levels import LevelSettings

TOKENS, CLIENTS = 16, 16
HEAD = """
[server]
default_policy = "none"
[tenants]
database = "tenants.sqlite"
[[models]]
name = "tiny"
source = "{model}"
"""


def main() -> None:
    """Print start, memory and speed of both servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--guards", type=int, default=100)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        model, artifact = Path(parent, "model"), Path(parent, "guard.safetensors")
        write_tiny(model, artifact, **SMOLLM2)
        for tenants, guards in ((1, 0), (options.tenants, options.guards)):
            folder = Path(parent, f"{tenants}-{guards}")
            folder.mkdir()
            keys = prepare(folder, model, artifact, tenants, guards)
            print(f"{tenants} tenants with {guards} guards each:", flush=True)
            for name, value in measured(folder, keys, options.requests, guards).items():
                print(f"  {name}: {value}", flush=True)


def prepare(folder: Path, model: Path, artifact: Path, tenants: int, guards: int) -> list[str]:
    """Write a configuration with its guards and its tenants to `folder`; gives the tenants' keys.

    Random gates are so small that no score reaches a threshold.
    """
    shipped, rng = Artifact.load(artifact), random.Random(0)
    text, names = HEAD.format(model=model), [f"g{number}" for number in range(guards)]
    meta = shipped.meta.model_copy(update={"tensors_sha256": ""})
    torch.manual_seed(0)
    for name in names:
        tensors = {
            key: (1e-4 * torch.randn(value.shape)).numpy() if key.startswith("gate") else value
            for key, value in shipped.tensors.items()
        }
        Artifact(meta, tensors).save(folder / f"{name}.safetensors")
        text += f'[[guards]]\nname = "{name}"\nartifact = "{name}.safetensors"\n'
    for number in range(tenants):
        order = json.dumps(rng.sample(names, len(names)))
        text += f"[policies.p{number}]\nguards = {order}\n" if names else ""
    path = folder / "config.toml"
    path.write_text(text)
    store = store_of(load_config(path))
    keys = []
    for number in range(tenants):
        organisation = f"org-{number}"
        policies = [f"p{number}" if names else "none"]
        required = {"required": policies, "policies": policies}
        store.new_organisation(organisation, LevelSettings().changed(required))
        store.new_team(organisation, "team", LevelSettings())
        keys.append(store.new_key(f"{organisation}/team", "key", LevelSettings())[1])
    return keys


def measured(folder: Path, keys: Sequence[str], requests: int, guards: int) -> dict[str, str]:
    """Start, memory, and what clients of random tenants see."""
    port, began = free_port(), time.monotonic()
    command = [sys.executable, "-m", "guard", "serve", "--config", "config.toml"]
    with running(
        [*command, "--port", str(port)], port, folder=folder, log=folder / "log"
    ) as process:
        asyncio.run(_ready(port))
        start = time.monotonic() - began
        seconds, latencies = asyncio.run(_asked(port, keys, requests, guards))
        status = Path(f"/proc/{process}/status").read_text()
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "start, s": f"{start:.1f}",
        "memory, MB": f"{int(memory) / 1000:.0f}",
        f"requests a second ({TOKENS} tokens, {CLIENTS} clients)": f"{requests / seconds:.2f}",
        "median of a request, s": f"{statistics.median(latencies):.2f}",
    }


async def _ready(port: int) -> None:
    async with httpx.AsyncClient() as client:
        while (await client.get(f"http://127.0.0.1:{port}/ready")).status_code != 200:
            await asyncio.sleep(0.1)


async def _asked(
    port: int, keys: Sequence[str], requests: int, guards: int
) -> tuple[float, list[float]]:
    rng, latencies = random.Random(1), list[float]()
    turns = iter([rng.choice(keys) for _ in range(requests)])
    body = {
        "model": "tiny",
        "max_tokens": TOKENS,
        "prompt": "Tell me about the history of the bicycle.",
    }

    async def client(session: httpx.AsyncClient) -> None:
        for key in turns:
            began = time.monotonic()
            answer = await session.post(
                f"http://127.0.0.1:{port}/v1/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
            )
            if answer.status_code != 200 or len(answer.json()["guard"]["guards"]) != guards:
                raise SystemExit(answer.text[:500])
            latencies.append(time.monotonic() - began)

    async with httpx.AsyncClient(timeout=300) as session:
        began = time.monotonic()
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        return time.monotonic() - began, latencies


if __name__ == "__main__":
    main()
