"""Ways into vLLM that are not its HTTP server, tried in a process of their own: `-m` with a folder.

Prints, as JSON behind a mark, what came of each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.vllm.play import MARK


def main() -> None:
    """Try them, on the model and the configuration in the folder."""
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    folder = Path(sys.argv[1])
    llm = LLM(
        str(folder / "model"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=160,
        max_num_seqs=4,
        seed=0,
    )
    greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    told: dict[str, Any] = {"plugins": {}}
    for policy in (None, "firm"):
        greedy.extra_args = {"guard_policy": policy} if policy else None
        for name, ask in (
            ("generate", lambda: llm.generate(["w5 w6"], greedy, use_tqdm=False)),
            ("chat", lambda: llm.chat([{"role": "user", "content": "w5"}], greedy, use_tqdm=False)),
        ):
            try:
                told[f"{name} {policy}"] = ask()[0].guard["policy"]  # type: ignore[attr-defined]
            except VLLMValidationError as error:
                told[f"{name} {policy}"] = str(error)
    told["foreign"] = _foreign(llm.llm_engine, greedy)
    told["afterwards"] = llm.generate(["w5"], greedy, use_tqdm=False)[0].guard["policy"]  # type: ignore[attr-defined]
    for plugins in (None, "inference-guard"):
        told["plugins"][str(plugins)] = _attached(plugins)
    print(MARK + json.dumps(told), flush=True)


def _foreign(engine: Any, params: Any) -> list[Any]:
    """How a request ends that goes into the engine's core without a plan."""
    from guard.config.vllm_plugin import POLICY
    from steering.engines.vllm.connectors import LOCAL
    from steering.engines.vllm.runners.guarded import PLAN

    request = engine.input_processor.process_inputs(
        "foreign", {"prompt_token_ids": [5, 6]}, params, supported_tasks=("generate",)
    )
    assert set(request.sampling_params.extra_args) == {POLICY, PLAN, LOCAL}
    request.sampling_params.extra_args = None
    engine.engine_core.add_request(request)
    outputs = engine.engine_core.get_output().outputs
    return [[out.request_id, str(out.finish_reason), out.new_token_ids] for out in outputs]


def _attached(plugins: str | None) -> list[int]:
    """How often an app has our route and our middleware, where VLLM_PLUGINS names `plugins`."""
    from fastapi import FastAPI
    from vllm.entrypoints.launchers import app as launcher

    os.environ.pop("VLLM_PLUGINS", None)
    if plugins is not None:
        os.environ["VLLM_PLUGINS"] = plugins
    app = FastAPI()
    launcher.attach_endpoint_plugins(app, ("generate",))
    paths = app.openapi()["paths"]
    return [
        sum(path == "/guard/reload" for path in paths),
        len(app.user_middleware),
        len(app.state.endpoint_plugins),
    ]


if __name__ == "__main__":
    main()
