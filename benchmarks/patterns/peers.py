"""Presidio's pattern recognisers and detect-secrets, on texts from standard input.

    PYTHON benchmarks/patterns/peers.py presidio < texts.json > findings.json

PYTHON is one that has `presidio-analyzer` and `detect-secrets`; nothing of the project is imported.
Texts are a JSON list of strings, findings a list of [start, end, kind] for each, and the seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = list[tuple[int, int, str]]
_NO_KINDS = {"URL", "DATE_TIME", "PERSON", "LOCATION", "NRP", "ORGANIZATION"}
"""Entities that the shipped lists do not have."""
_LEAST_SCORE = 0.3


def presidio() -> Callable[[str], Found]:
    """All pattern recognisers of all languages, without a model."""
    import presidio_analyzer.predefined_recognizers as shipped
    from presidio_analyzer import PatternRecognizer

    recognizers: list[Any] = []
    for name in dir(shipped):
        kind = getattr(shipped, name)
        if isinstance(kind, type) and issubclass(kind, PatternRecognizer):
            try:
                recognizer: Any = kind()
            except Exception:
                continue  # one that needs a service
            if recognizer.supported_entities[0] not in _NO_KINDS:
                recognizers.append(recognizer)
    from presidio_analyzer.predefined_recognizers import PhoneRecognizer

    recognizers.append(PhoneRecognizer())

    def find(text: str) -> Found:
        found = []
        for recognizer in recognizers:
            for each in recognizer.analyze(text, recognizer.supported_entities, None) or ():
                if each.score >= _LEAST_SCORE:
                    found.append((each.start, each.end, each.entity_type))
        return found

    return find


def secrets() -> Callable[[str], Found]:
    """detect-secrets with its default plugins and filters, as it reads a file."""
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import default_settings

    path = Path(tempfile.mkdtemp()) / "text.txt"

    def find(text: str) -> Found:
        path.write_text(text, encoding="utf-8")
        found, lines = [], text.splitlines(keepends=True)
        with default_settings():
            for secret in scan_file(str(path)):
                value = secret.secret_value or ""
                before = sum(map(len, lines[: secret.line_number - 1]))
                start = text.find(value, before)
                if value and start >= 0:
                    found.append((start, start + len(value), secret.type))
        return found

    return find


def main() -> None:
    """Read the texts, write the findings."""
    texts = json.load(sys.stdin)
    find = {"presidio": presidio, "detect-secrets": secrets}[sys.argv[1]]()
    find("warm up")
    began = time.process_time()
    findings = [find(text) for text in texts]
    json.dump({"findings": findings, "seconds": time.process_time() - began}, sys.stdout)


if __name__ == "__main__":
    main()
