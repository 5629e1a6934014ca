"""`python -m tests.vllm.seams WHEEL_OR_FOLDER`: the seams in the sources of a release of vLLM.

Prints each seam that is not there as the plugin needs it, with the reason why it is needed, and
ends with 1 where there is one. Nothing of the release is imported.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from tests.vllm.seams.seam import problems
from tests.vllm.seams.table import SEAMS


def main() -> int:
    """The number of seams that do not hold, at most 1."""
    given = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        tree = given
        if given.is_file():
            with zipfile.ZipFile(given) as wheel:
                names = [n for n in wheel.namelist() if n.endswith(".py") and n.startswith("vllm/")]
                wheel.extractall(folder, names)
            tree = Path(folder) / "vllm"
        broken = count = 0
        for part, seams in SEAMS.items():
            for seam in seams:
                count += 1
                for problem in problems(seam, tree):
                    broken += 1
                    print(f"{part}: {seam.title}: {problem}\n    needed: {seam.why}")
    print(f"{given.name}: {count} seams, {broken} problems")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
