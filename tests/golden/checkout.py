"""A checkout of the project, driven as its users drive it: the command `guard` and HTTP."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 300.0


@dataclass(frozen=True)
class Checkout:
    """The folder of a checkout; commands run with its packages, in it, on one thread."""

    root: Path

    def __post_init__(self) -> None:
        shown = "import guard, server; print(guard.__file__); print(server.__file__)"
        files = self._run(["-c", shown]).split()
        if not all(Path(file).is_relative_to(self.root) for file in files):
            raise RuntimeError(f"the packages of {self.root} are not the ones that run: {files}")

    def artifacts(self) -> list[str]:
        """Every artifact that is shipped in `examples/`, relative to the checkout."""
        return shipped_artifacts(self.root)

    def guard(self, *arguments: str | Path) -> str:
        """What the command `guard` prints. Raises RuntimeError where it fails."""
        return self._run(["-m", "guard", *map(str, arguments)])

    def inspect(self, artifact: str | Path) -> dict[str, Any]:
        """What `guard inspect` says of an artifact."""
        contents: dict[str, Any] = json.loads(self.guard("inspect", artifact, "--json"))
        return contents

    @contextmanager
    def serving(self, config: Path) -> Iterator[str]:
        """`guard serve` on a free port of the loopback interface; gives its URL."""
        command = [sys.executable, "-m", "guard", "serve", "--config", str(config)]
        log = config.with_suffix(".log")
        with log.open("w") as errors:
            server = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", "0", "--json"],
                cwd=self.root,
                env=self._environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert server.stdout is not None
        try:
            ready, _, _ = select.select([server.stdout], [], [], START_S)
            line = server.stdout.readline() if ready else ""
            if not line:
                raise RuntimeError(f"guard serve did not start: {log.read_text()[-2000:]}")
            yield json.loads(line)["url"]
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            server.stdout.close()

    def _run(self, arguments: Sequence[str]) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return os.environ | threads | {"PYTHONPATH": str(self.root), "CUDA_VISIBLE_DEVICES": ""}


def shipped_artifacts(root: Path) -> list[str]:
    """The artifacts in `examples/`, without weights of models and baselines fitted on the spot."""
    return sorted(
        str(path.relative_to(root))
        for path in (root / "examples").rglob("*.safetensors")
        if not {"weights", "baselines"} & set(path.parts)
    )
