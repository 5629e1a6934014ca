"""Weights that are quantised while transformers loads them: what runs on a CPU and on a GPU.

Weights alone are packed, and each product unpacks them: what a row gets does not depend on its
neighbours, as it does where activations are quantised by the outliers of a batch (LLM.int8(),
Dettmers et al. 2022, arXiv 2208.07339).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def quantising(method: str, dtype: str) -> Any:
    """The `quantization_config` of transformers for a method of METHODS; products are computed in
    `dtype`. Raises ValueError for another method, and where its package is missing."""
    try:
        return METHODS[method](torch.float32 if dtype == "auto" else getattr(torch, dtype))
    except KeyError:
        raise ValueError(f"no quantization {method!r}: there is {', '.join(METHODS)}") from None
    except ImportError as error:
        raise ValueError(
            f"quantization {method!r} needs {error.name}: pip install 'inference-guard[quantised]'"
        ) from error


def _int8(dtype: torch.dtype) -> Any:
    import torchao.quantization as torchao
    from transformers import TorchAoConfig

    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


def _nf4(dtype: torch.dtype) -> Any:
    import bitsandbytes  # noqa: F401  # transformers would say so with a traceback
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


METHODS: Mapping[str, Callable[[torch.dtype], Any]] = {"int8": _int8, "nf4": _nf4}
"""By name: 8 bits a weight with a scale for each output (torchao), 4 bits in blocks of 64 (NF4,
arXiv 2305.14314; bitsandbytes)."""
