"""The guard's own operators, which captures look into: they are made of Python."""

from __future__ import annotations

from typing import Any

from tests.vllm.emulation.tape import Graph

PREFIX = "inference_guard"


def install() -> None:
    """Before the plugin registers them."""
    from vllm.utils import torch_utils

    register = torch_utils.direct_register_custom_op

    def registered(op_name: str, op_func: Any, *args: Any, **kwargs: Any) -> Any:
        if op_name.startswith(PREFIX):
            Graph.inside[f"vllm::{op_name}"] = op_func
        return register(op_name, op_func, *args, **kwargs)

    torch_utils.direct_register_custom_op = registered
