"""inference-guard: guards that act inside a model's forward pass, chosen per request.

Importing this package loads neither torch nor any engine; `guard.attached` does when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.attach import attached

__version__ = "0.1.0"
__all__ = ["__version__", "attached"]


def __getattr__(name: str) -> Any:
    if name == "attached":
        from guard.attach import attached

        return attached
    raise AttributeError(f"module 'guard' has no attribute {name!r}")
