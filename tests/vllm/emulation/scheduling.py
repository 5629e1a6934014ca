"""Async scheduling, which vLLM takes away on a CPU, and the streams that V1 has for it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def install() -> None:
    """Before the engine is configured."""
    from vllm.platforms.cpu import CpuPlatform

    own = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        own(cls, config)
        config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)  # type: ignore[assignment]
    install_streams()


class Stream:
    """In the place of torch.cuda.Stream, and of its events: all is done when it is asked for."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def record(self, *_args: Any) -> None:
        pass

    wait = synchronize = wait_stream = wait_event = record

    def record_event(self, *_args: Any) -> Stream:
        return Stream()

    def query(self) -> bool:
        return True


_STREAM = Stream()


def install_streams() -> None:
    """Streams and events for whoever makes them."""
    torch.cuda.Stream = torch.cuda.Event = torch.Event = Stream  # type: ignore
    torch.cuda.current_stream = lambda *_args: _STREAM  # type: ignore
    torch.cuda.stream = lambda *_args: contextlib.nullcontext()  # type: ignore
