"""What a line of the audit log costs: at the request, and in the writer's thread.

Run as `python -m benchmarks.audit`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from guard.audit import AuditLog
from guard.audit.chain_file import ChainFile
from guard.audit.signing import Signer, new_key
from guard.verdict import GuardVerdict, Verdict

LINES = 3000
ROUNDS = 3
BATCH = 100
_PAUSE_S = 0.0005


def main() -> None:
    """Print the medians and 99th percentiles of `append`, and the thread's time of a line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = folder / "audit.pem"
        new_key(key)
        for turn in range(ROUNDS):
            for what, signing in (("at once", None), ("chained", key)):
                with AuditLog(folder / f"{what}{turn}", key=signing) as log:
                    print(what, _appending(log), flush=True)
        rows = [{"time": "", "tenant": "acme"} | _verdict(n).as_dict() for n in range(BATCH)]
        file = ChainFile(folder / "batches", Signer(key), lambda: "")
        start = time.thread_time()
        for _ in range(LINES // BATCH):
            file.write(rows)
        print(f"linking and writing: {(time.thread_time() - start) / LINES * 1e6:.0f} us a line")
        file.close()


def _verdict(number: int) -> Verdict:
    guards = tuple(
        GuardVerdict(f"g{place}", "concept/x", "steer", 0.7, 0.5, True, "steer", 0)
        for place in range(3)
    )
    return Verdict(f"req-{number}", "m", "p", "pass", guards, 1.0)


def _appending(log: AuditLog) -> str:
    took = []
    for number in range(LINES):
        verdict = _verdict(number)
        start = time.perf_counter()
        log.append(verdict, tenant="acme")
        took.append((time.perf_counter() - start) * 1e6)
        time.sleep(_PAUSE_S)  # as requests that come one after another
    took.sort()
    return f"median {took[LINES // 2]:.1f} us, 99th percentile {took[LINES * 99 // 100]:.0f} us"


if __name__ == "__main__":
    main()
