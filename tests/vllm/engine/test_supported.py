"""Which configurations of vLLM's engine guards follow, and how they are adapted."""

from __future__ import annotations

from types import SimpleNamespace as Of
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vllm.config import CUDAGraphMode  # noqa: E402

from steering.engines.errors import Unsupported  # noqa: E402
from steering.engines.vllm import supported  # noqa: E402
from steering.engines.vllm.supported import adapt, require_followed  # noqa: E402
from steering.engines.vllm.tap import OPERATOR  # noqa: E402


def engine(graphs: str = "FULL_AND_PIECEWISE", **more: Any) -> Any:
    """As vLLM configures a GPU where nothing is asked for; `more` changes parts."""
    parts: dict[str, dict[str, Any]] = {
        "model_config": {"runner_type": "generate", "is_mm_prefix_lm": False},
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "distributed_executor_backend": "mp",
            "decode_context_parallel_size": 1,
            "prefill_context_parallel_size": 1,
            "use_ubatching": False,
        },
        "scheduler_config": {"async_scheduling": True},
        "cache_config": {"kv_sharing_fast_prefill": False},
        "compilation_config": {
            "cudagraph_mode": CUDAGraphMode[graphs],
            "splitting_ops": ["vllm::unified_attention"],
            "use_inductor_graph_partition": False,
        },
    }
    made = {name: Of(**(values | more.pop(name, {}))) for name, values in parts.items()}
    return Of(
        **made,
        **{"speculative_config": None, "kv_transfer_config": None, "weight_transfer_config": None}
        | more,
    )


@pytest.mark.parametrize("graphs", ["NONE", "PIECEWISE", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"])
def test_modes_of_graphs_that_are_followed(graphs: str) -> None:
    require_followed(engine(graphs))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"graphs": "FULL"}, "CUDA graphs of whole prompts"),
        (
            {"compilation_config": {"use_inductor_graph_partition": True}},
            "Inductor's graph partition",
        ),
        ({"parallel_config": {"use_ubatching": True}}, "micro-batches"),
        ({"parallel_config": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"parallel_config": {"prefill_context_parallel_size": 2}}, "context parallelism"),
        ({"cache_config": {"kv_sharing_fast_prefill": True}}, "fast prefill"),
        ({"speculative_config": Of()}, "speculative decoding with async scheduling"),
        (
            {
                "speculative_config": Of(enable_adaptive_verification=True),
                "scheduler_config": {"async_scheduling": False},
            },
            "adaptive verification",
        ),
        ({"model_config": {"runner_type": "pooling"}}, "the runner 'pooling'"),
        (
            {
                "parallel_config": {
                    "pipeline_parallel_size": 2,
                    "distributed_executor_backend": "external_launcher",
                }
            },
            "an external launcher",
        ),
    ],
)
def test_what_is_not_proven_is_refused_by_name(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match="guards do not go together with") as refused:
        require_followed(engine(**changed))
    assert named in str(refused.value) and str(refused.value).count(",") == 0


def test_breakable_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported, "is_breakable_cudagraph_enabled", lambda: True)
    with pytest.raises(Unsupported, match="breakable CUDA graphs"):
        require_followed(engine())
    # without pieces, nothing is broken
    require_followed(engine("FULL_DECODE_ONLY"))


def test_images_that_attend_to_themselves_are_refused_where_vllm_runs_them_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeing = engine(model_config={"is_mm_prefix_lm": True})
    for is_cpu in (True, False):
        monkeypatch.setattr(supported.current_platform, "is_cpu", lambda answer=is_cpu: answer)
        if is_cpu:
            with pytest.raises(Unsupported, match="images whose tokens attend to each other"):
                require_followed(seeing)
        else:
            require_followed(seeing)


def test_the_operator_stands_between_captured_pieces() -> None:
    config = engine()
    adapt(config)
    adapt(config)
    assert config.compilation_config.splitting_ops == ["vllm::unified_attention", OPERATOR]
    uncaptured = engine("FULL_DECODE_ONLY")
    adapt(uncaptured)
    assert OPERATOR not in uncaptured.compilation_config.splitting_ops


@pytest.mark.parametrize(
    ("graphs", "left"), [("FULL_AND_PIECEWISE", "PIECEWISE"), ("FULL_DECODE_ONLY", "NONE")]
)
def test_drafts_run_outside_of_full_graphs(graphs: str, left: str) -> None:
    config = engine(graphs, speculative_config=Of())
    adapt(config)
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode[left]
