"""`python -m tests.vllm.seams.overlay WHEEL FOLDER`: a newer vLLM's Python on the CPU build here.

Releases come for GPUs first. The folder, put in front on PYTHONPATH, is a package `vllm` of the
wheel's Python and the installed CPU build's compiled parts: whatever of the two still goes together
runs, and so do the plugin's tests. It proves less than a build of that release would.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

LARGE = 4_000_000
"""Bytes of a file that is no source."""


def main() -> None:
    """Make the folder."""
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations, "install vLLM's CPU build first"
    installed = Path(spec.submodule_search_locations[0])
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as packed:
        # no binaries: those for GPUs are large
        members = [member for member in packed.infolist() if member.file_size < LARGE]
        packed.extractall(
            folder,
            [
                member.filename
                for member in members
                if member.filename.startswith("vllm/") and not member.filename.endswith(".so")
            ],
        )
    for library in installed.glob("*.so"):
        shutil.copy(library, folder / "vllm" / library.name)
    # vLLM takes the platform from the version of the package
    version = wheel.resolve().name.split("-")[1]
    about = folder / f"vllm-{version}+cpu.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", "utf-8"
    )


if __name__ == "__main__":
    main()
