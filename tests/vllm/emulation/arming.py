"""Arms what the settings of this process ask for, in the order that vLLM's imports allow."""

from __future__ import annotations

from importlib import import_module

from tests.vllm.emulation.settings import asked


def before_import() -> None:
    """While no module of vLLM is imported."""
    settings = asked()
    if settings is not None and settings.runner == "v2":
        from tests.vllm.emulation import interpreter

        interpreter.claim()


def after_import() -> None:
    """Once the package itself is imported."""
    settings = asked()
    if settings is None:
        return
    from vllm import LLMEngine  # noqa: F401 (vLLM's modules import each other: this order works)

    if settings.runner == "v2":
        from tests.vllm.emulation import interpreter

        interpreter.release()
    from tests.vllm.emulation import census, graphs, operators, scheduling

    census.install()
    operators.install()
    if settings.graphs:
        graphs.install()
    if settings.asynchronous:
        scheduling.install()
    if settings.hook:
        module, name = settings.hook.split(":")
        getattr(import_module(module), name)()
