"""Triton without a compiler: its interpreter runs each kernel in numpy.

vLLM asks which backends Triton has while `vllm.triton_utils` is imported: one is claimed until
then, which is never used. TRITON_INTERPRET is set before Triton is imported, by the environment.
"""

from __future__ import annotations

import os
from typing import Any


def claim() -> None:
    """Claim a backend, before vLLM is imported."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    from triton.backends import Backend, backends

    backends["cpu"] = Backend(compiler=None, driver=_driver())


def release() -> None:
    """Take the claim back: Inductor, too, asks which backends there are."""
    import vllm.triton_utils
    from triton.backends import backends

    assert vllm.triton_utils.HAS_TRITON
    del backends["cpu"]
    for name in ("create_masked_load", "create_masked_store"):
        _mask_by_bool(name)


def _driver() -> Any:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    def unavailable(self: Any, *_args: Any) -> Any:
        raise NotImplementedError

    answers = {
        "__init__": lambda self: None,
        "is_active": staticmethod(lambda: True),
        "map_python_to_cpp_type": lambda self, ty: ty,
        "get_current_target": lambda self: GPUTarget("cpu", 0, 1),
        "get_current_device": lambda self: 0,
        "get_current_stream": lambda self, device=None: 0,
        "set_current_device": lambda self, device: None,
        "get_active_torch_device": lambda self: torch.device("cpu"),
        "get_device_interface": lambda self: torch.cpu,
        "get_benchmarker": unavailable,
        "get_empty_cache_for_benchmark": unavailable,
        "clear_cache": lambda self, cache: None,
    }
    return type("Driver", (DriverBase,), answers)


def _mask_by_bool(name: str) -> None:
    """The interpreter's masks must be of bool, and `a & b` of scalars may be an integer."""
    from triton.runtime.interpreter import InterpreterBuilder

    own = getattr(InterpreterBuilder, name)
    at = 0 if name.endswith("load") else 1

    def masked(self: Any, pointers: Any, *args: Any) -> Any:
        args[at].data = args[at].data.astype(bool)
        return own(self, pointers, *args)

    setattr(InterpreterBuilder, name, masked)
