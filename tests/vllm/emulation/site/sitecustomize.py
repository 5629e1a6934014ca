"""Arms the emulation in a process as soon as it imports vLLM; others are left alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Finder(MetaPathFinder):
    """Runs `arming` around the import of vLLM, which is found as ever."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "vllm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        root = str(Path(__file__).parents[4])
        if root not in sys.path:
            sys.path.insert(0, root)
        from tests.vllm.emulation.arming import after_import, before_import

        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            before_import()
            execute(module)
            after_import()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "EMULATED_VLLM" in os.environ:
    sys.meta_path.insert(0, _Finder())
