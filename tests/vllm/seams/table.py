"""All seams, by the part of vLLM that they are in."""

from __future__ import annotations

from collections.abc import Mapping

from tests.vllm.seams.engine import SCHEDULING, V1, V2
from tests.vllm.seams.front import FRONT
from tests.vllm.seams.seam import Seam

SEAMS: Mapping[str, tuple[Seam, ...]] = {
    "Front end": FRONT,
    "Scheduler, workers, configuration": SCHEDULING,
    "Model runner V1": V1,
    "Model runner V2": V2,
}
