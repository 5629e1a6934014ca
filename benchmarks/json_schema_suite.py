"""The JSON Schema Test Suite, by what grammars of schemas allow.

    python -m benchmarks.json_schema_suite FOLDER [--tokenizer smollm2] [--verbose]

FOLDER is `tests/draft2020-12` of github.com/json-schema-org/JSON-Schema-Test-Suite. A group whose
schema is refused counts as refused; of the others each instance is written as compact JSON, as it
stands and with properties in the order of the schema, and must match the grammar where the suite
calls it valid, and only there.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from guard.models.sources import resolve_source
from steering.constraint import Constraint, ConstraintError
from steering.engines.transformers.sampling.grammars import Grammar, Grammars


def main() -> None:
    """Run the suite, and print what agreed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", default="smollm2")
    parser.add_argument("--verbose", action="store_true", help="print what did not agree")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(arguments.tokenizer))
    grammars = Grammars(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))
    counts: Counter[str] = Counter()
    for path in sorted(arguments.folder.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            try:
                grammar = grammars.compile(Constraint.json_schema(group["schema"]))
            except ConstraintError:
                counts["groups whose schema is refused"] += 1
                continue
            counts["groups whose schema is taken"] += 1
            for test in group["tests"]:
                verdict = _verdict(grammar, tokenizer, group["schema"], test)
                counts[verdict] += 1
                if arguments.verbose and verdict != "instances that agree":
                    print(verdict, path.name, group["description"], test["description"], sep=": ")
    print(json.dumps(counts, indent=2))


def _verdict(grammar: Grammar, tokenizer: Any, schema: Any, test: dict[str, Any]) -> str:
    matches = any(
        _matches(grammar, tokenizer, instance)
        for instance in (test["data"], _ordered(test["data"], schema))
    )
    if matches == test["valid"]:
        return "instances that agree"
    return "invalid instances that match" if matches else "valid instances that do not match"


def _matches(grammar: Grammar, tokenizer: Any, instance: Any) -> bool:
    text = json.dumps(instance, separators=(",", ":"), ensure_ascii=False)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    matcher = grammar.matcher()
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def _ordered(instance: Any, schema: Any) -> Any:
    """The instance with its properties in the order of the schema."""
    known = schema if isinstance(schema, dict) else {}
    if isinstance(instance, list):
        return [_ordered(item, known.get("items")) for item in instance]
    if not isinstance(instance, dict):
        return instance
    properties = known.get("properties") or {}
    names = dict.fromkeys((*properties, *known.get("required", ()), *instance))
    return {
        name: _ordered(instance[name], properties.get(name)) for name in names if name in instance
    }


if __name__ == "__main__":
    main()
