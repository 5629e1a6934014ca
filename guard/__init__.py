"""inference-guard: guards that act inside a model's forward pass, chosen per request.

Importing this package loads neither torch nor any engine; `guard.attached` and
`guard.load_pipeline` do when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.attach import attached
    from guard.models.pipelines import load_pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "attached", "load_pipeline"]


def __getattr__(name: str) -> Any:
    if name == "attached":
        from guard.attach import attached

        return attached
    if name == "load_pipeline":
        from guard.models.pipelines import load_pipeline

        return load_pipeline
    raise AttributeError(f"module 'guard' has no attribute {name!r}")
