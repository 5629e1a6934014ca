"""Fuzz one reader with atheris: `python -m tests.fuzzing json --seconds 600 --corpus FOLDER`.

`pip install atheris` first. An input that makes a reader raise what it may not is written to
`crash-...` in the working directory; `--input FILE` plays it again without atheris. The corpus that
a search has found is kept in FOLDER, where the next one goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--input", type=Path, help="play this input once")
    options = parser.parse_args()
    if options.input is not None:
        from tests.fuzzing.targets import TARGETS

        TARGETS[options.target].read(options.input.read_bytes())
        return
    import atheris

    with atheris.instrument_imports(include=["guard", "server", "classifiers", "tomlkit"]):
        from tests.fuzzing.targets import LONGEST, TARGETS
    if options.target not in TARGETS:
        parser.error(f"no target {options.target!r}; there are {', '.join(TARGETS)}")
    target = TARGETS[options.target]
    with TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        arguments = [
            sys.argv[0],
            f"-max_total_time={options.seconds}",
            f"-max_len={LONGEST}",
            "-timeout=20",
            "-rss_limit_mb=4096",
            str(corpus),
        ]
        atheris.Setup(arguments, target.read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
