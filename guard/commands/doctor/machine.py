"""What the machine has: cores, memory, devices, open files, room in the cache."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from guard.cache import cache_dir
from guard.commands.doctor.finding import Finding

GIB = 2**30
OPEN_FILES = 4096
"""Fewer let a server take fewer than some thousand connections; the proxy needs two for each."""
_CACHE_GIB = 2
_CGROUP = Path("/sys/fs/cgroup")


def memory_bytes() -> int:
    """The memory that a process here may use: the machine's, or its container's where that is
    less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max", and machines without control groups
        memory = min(memory, int((_CGROUP / "memory.max").read_text()))
    return memory


def device_bytes() -> list[tuple[str, int]]:
    """Name and memory of each GPU that torch sees."""
    if find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [(str(device.name), int(device.total_memory)) for device in devices]


def machine_findings() -> Iterator[Finding]:
    """Findings about the machine itself."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    chosen = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Finding("processor", "ok", f"{cores} cores{chosen}")
    yield Finding("memory", "ok", f"{memory_bytes() / GIB:.1f} GiB")
    devices = device_bytes()
    for name, memory in devices:
        yield Finding("GPU", "ok", f"{name}, {memory / GIB:.0f} GiB")
    if not devices:
        yield Finding("GPU", "ok", "none: models run on the processor")
    yield _open_files()
    yield _cache()


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:  # a system without it
        return Finding("open files", "ok", "as many as the system allows")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES:
        count = "no limit" if limit == resource.RLIM_INFINITY else str(limit)
        return Finding("open files", "ok", count)
    remedy = "raise `ulimit -n`, or LimitNOFILE of the systemd unit, for more connections"
    return Finding("open files", "note", str(limit), remedy)


def _cache() -> Finding:
    folder = cache_dir()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = "set GUARD_CACHE to a folder that can be written, or fill it as another user"
        return Finding("cache", "note", f"{folder} cannot be written", remedy)
    free = shutil.disk_usage(place).free / GIB
    if free < _CACHE_GIB:
        remedy = "make room, or set GUARD_CACHE to a folder on another disk"
        return Finding("cache", "note", f"{folder}, {free:.1f} GiB free", remedy)
    return Finding("cache", "ok", f"{folder}, {free:.0f} GiB free")
