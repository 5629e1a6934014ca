"""What is asked for, and how a process is told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "EMULATED_VLLM"
"""The environment variable that carries the settings, as JSON."""


@dataclass(frozen=True)
class Settings:
    """`runner`: "v1" or "v2"; `graphs`: whether vLLM's modes of CUDA graphs are to be had;
    `asynchronous`: async scheduling; `hook`: "module:function", called once vLLM is imported."""

    runner: str = "v1"
    graphs: bool = False
    asynchronous: bool = False
    hook: str | None = None


def environment(settings: Settings, before: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to set, beside those of `before`, for a process that is to be armed."""
    if settings.runner not in {"v1", "v2"}:
        raise ValueError(f"the runner is 'v1' or 'v2', not {settings.runner!r}")
    path = [str(Path(__file__).parent / "site"), *before.get("PYTHONPATH", "").split(os.pathsep)]
    made = {
        VARIABLE: json.dumps(asdict(settings)),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "VLLM_USE_V2_MODEL_RUNNER": str(int(settings.runner == "v2")),
    }
    if settings.runner == "v2":
        made["TRITON_INTERPRET"] = "1"
    if settings.graphs:
        # tapes are of operators, not of what Inductor makes of them: nothing is to be cached, and
        # a model is warmed up as on a GPU
        made |= {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_CPU_CI_ENV": "0"}
    return made


def asked() -> Settings | None:
    """Of this process."""
    told = os.environ.get(VARIABLE)
    return Settings(**json.loads(told)) if told else None
