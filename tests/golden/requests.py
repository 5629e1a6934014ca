"""The recorded requests, as bodies of HTTP requests."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUESTS = Path(__file__).with_name("requests.toml")

_IMAGE_FIELDS = {
    "count": "n",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "strength": "strength",
    "inversion": "inversion",
}


@dataclass(frozen=True)
class Request:
    """One HTTP request; those of one `batch` are sent at once.

    `source` names the request whose image is to be edited.
    """

    name: str
    path: str
    body: dict[str, Any]
    batch: str | None = None
    source: str | None = None


def read_requests(path: Path = REQUESTS) -> list[Request]:
    """All requests of the file, with unique names. Raises ValueError where two have the same."""
    tables = tomllib.loads(path.read_text())
    builders = {
        "language": _language,
        "completions": _completions,
        "images": _images,
        "moderations": _moderations,
    }
    requests = [
        request
        for kind, builder in builders.items()
        for table in tables[kind]
        for request in builder(table)
    ]
    names = [request.name for request in requests]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"requests with the same name: {sorted(repeated)}")
    return requests


def _rows(kind: str, table: dict[str, Any]) -> Iterator[tuple[str, str | None, str, Any]]:
    """Name, batch, policy and prompt of each request of a table."""
    group = " ".join(filter(None, (kind, table.get("name"))))
    batch = group if table.get("together") else None
    for policy, prompt in itertools.product(table["policies"], table["prompts"]):
        shown = prompt if isinstance(prompt, str) else " | ".join(prompt)
        yield f"{group} {policy}: {shown}", batch, policy, prompt


def _language(table: dict[str, Any]) -> Iterator[Request]:
    for name, batch, policy, prompt in _rows("language", table):
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": table["max_tokens"],
            "temperature": 0,
            "n": table.get("choices", 1),
            "stream": table.get("stream", False),
            "guard": {"policy": policy},
        }
        yield Request(name, "/v1/chat/completions", body, batch)


def _completions(table: dict[str, Any]) -> Iterator[Request]:
    for name, batch, policy, prompts in _rows("completions", table):
        body = {
            "model": "smollm2",
            "prompt": prompts,
            "max_tokens": table["max_tokens"],
            "temperature": 0,
            "guard": {"policy": policy},
        }
        yield Request(name, "/v1/completions", body, batch)


def _images(table: dict[str, Any]) -> Iterator[Request]:
    source = table.get("source")
    for name, batch, policy, prompt in _rows("images", table):
        guard = {"policy": policy} | ({"debug": True} if table.get("masks") else {})
        body = {
            "model": "emoji",
            "prompt": prompt,
            "seed": 11,
            "num_inference_steps": table.get("steps", 6),
            "guard": guard,
        }
        body |= {field: table[key] for key, field in _IMAGE_FIELDS.items() if key in table}
        path = "/v1/images/edits" if source else "/v1/images/generations"
        yield Request(name, path, body, batch, source)


def _moderations(table: dict[str, Any]) -> Iterator[Request]:
    for text in table["texts"]:
        yield Request(f"moderations: {text}", "/v1/moderations", {"input": text})
