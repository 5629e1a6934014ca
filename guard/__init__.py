"""inference-guard: guards that act inside a model's forward pass, chosen per request.

Importing this package loads neither torch nor any engine; `guard.attached`, `guard.forget` and
`guard.load_pipeline` do when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.attach import attached
    from guard.forgetting import forget
    from guard.models.pipelines import load_pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "attached", "forget", "load_pipeline"]

_WHERE = {
    "attached": "guard.attach",
    "forget": "guard.forgetting",
    "load_pipeline": "guard.models.pipelines",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'guard' has no attribute {name!r}")
