"""The requests that each framework sends: its driver is run against the scripted upstream."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.screens.frameworks.upstream import Sent, Upstream, serving

DRIVERS: Final = Path(__file__).parent / "drivers"
FRAMEWORKS: Final[Mapping[str, str]] = {
    "instructor": "instructor_objects",
    "pydantic-ai": "pydantic_ai_agents",
    "LangChain": "langchain_agents",
    "LlamaIndex": "llama_index_agents",
    "OpenAI Agents": "openai_agents",
    "smolagents": "smolagents_agents",
    "CrewAI": "crewai_crews",
}
"""Their drivers in Python."""
AI_SDK: Final = "AI SDK"
_IN_NODE: Final = "ai_sdk.mjs"
_ROOT: Final = Path(__file__).parents[3]
_LONGEST_S: Final = 300.0


def requests(python: Path, node: Path | None) -> dict[str, list[Sent]]:
    """What each framework has sent, the AI SDK only where `node` is the folder of its packages.

    Raises SystemExit where a driver fails: a framework that was seen in part is not a figure.
    """
    commands = {
        name: [str(python.absolute()), "-m", f"{__package__}.drivers.{driver}"]
        for name, driver in FRAMEWORKS.items()
    }
    if node is not None:
        shutil.copy(DRIVERS / _IN_NODE, node)  # node looks for packages beside the file
        commands[AI_SDK] = ["node", str(node / _IN_NODE)]
    return {name: _sent(name, command) for name, command in commands.items()}


def read_sent(path: Path) -> dict[str, list[Sent]]:
    """What `--sent` has kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Sent(**each) for each in rows] for name, rows in kept.items()}


def _sent(name: str, command: list[str]) -> list[Sent]:
    upstream = Upstream()
    with serving(upstream) as address:
        done = subprocess.run(
            [*command, address],
            cwd=_ROOT,
            env=_environment(address),
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-4000:]}")
    return upstream.sent


def _environment(address: str) -> dict[str, str]:
    """The caller's, with nowhere to go but the upstream."""
    return {
        **os.environ,
        "OPENAI_API_KEY": "no-key",
        "OPENAI_BASE_URL": f"{address}/v1",
        "NO_PROXY": "127.0.0.1",
        "OTEL_SDK_DISABLED": "true",
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "LANGSMITH_TRACING": "false",
        "PYTHONPATH": "",
    }
