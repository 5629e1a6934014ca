"""Compiled code, paused: what `torch.compile` has made of a model before calls no new hooks."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_pauses = 0
_stance: Any = None


def pause_compiled() -> Callable[[], None]:
    """Run everything that is compiled with `torch.compile` as plain Python, in the whole process,
    until the function that is returned is called (once).

    May be called several times; the last to end it restores the stance of before.
    """
    global _pauses, _stance
    with _lock:
        if _pauses == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _pauses += 1
    return _resume


def _resume() -> None:
    global _pauses, _stance
    with _lock:
        _pauses -= 1
        if _pauses == 0 and _stance is not None:
            _stance.__exit__(None, None, None)
            _stance = None
