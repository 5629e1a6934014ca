"""inference-guard: guards that act inside a model's forward pass, chosen per request.

Importing this package loads neither torch nor any engine; `guard.attached` and `guard.forget` do
when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.attach import attached
    from guard.forgetting import forget

__version__ = "0.1.0"
__all__ = ["__version__", "attached", "forget"]

_WHERE = {"attached": "guard.attach", "forget": "guard.forgetting"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'guard' has no attribute {name!r}")
