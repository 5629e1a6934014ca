"""The document of a server, made ready for the generation of requests and the check of answers."""

from __future__ import annotations

import base64
import io
import json
from copy import deepcopy
from typing import Any

from PIL import Image

from server.auth import POLICY_HEADER
from tests.conformance.generated.served import MODELS, MOST_TOKENS, POLICIES

_PREFIX = "#/components/schemas/"
_IMAGES = {"ImagePart", "InputImage", "ImageBlock"}
_LENGTHS = {"max_tokens", "max_completion_tokens", "max_output_tokens"}


def narrowed(document: dict[str, Any], *, plain: bool) -> dict[str, Any]:
    """A copy whose requests name models and policies that are served, ask for short answers, and
    have the one key that they are sent with.

    `plain`: the messages of chats have no images, which the tiny model does not see, and policies
    stand in bodies alone, so that more requests are answered.
    """
    document = deepcopy(document)
    schemas = document["components"]["schemas"]
    if plain:
        _leave_out_images(document)
    for name, schema in schemas.items():
        members = schema.get("properties", {})
        if name.endswith("Request") and "model" in members:
            kind = "images" if {"ImageRequest", "EditRequest"} & {name} else "text"
            members["model"] = {"enum": [MODELS[kind]]}
        # of messages more than is possible is the most that is: no limit is passed
        for length in members.keys() & (set() if name == "MessagesRequest" else _LENGTHS):
            _narrow(members[length], maximum=MOST_TOKENS)
        if name.endswith("Request") and "n" in members:
            _narrow(members["n"], maximum=2)
        if name == "EditRequest" and plain:
            members["image"] = {"enum": [_image()]}
        if "num_inference_steps" in members:
            _narrow(members["num_inference_steps"], maximum=2)
        if name.endswith("GuardOptions"):
            members["policy"] = {"enum": [*POLICIES]}
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
            parameters = operation.get("parameters", [])
            for parameter in [*parameters]:
                if parameter["name"] == POLICY_HEADER and plain:
                    parameters.remove(parameter)
                elif parameter["name"] == POLICY_HEADER:
                    parameter["schema"] = {"enum": [*POLICIES]}
                elif parameter["name"] == "model":
                    parameter["schema"] = {"enum": [*MODELS.values(), "another"]}
    return document


def _leave_out_images(value: Any) -> None:
    """Take the parts that are images out of all lists of kinds."""
    if isinstance(value, dict):
        for kinds in (value.get("anyOf"), value.get("oneOf")):
            for kind in [*(kinds or ())]:
                if kind.get("$ref", "").removeprefix(_PREFIX) in _IMAGES:
                    kinds.remove(kind)
        mapping = value.get("discriminator", {}).get("mapping", {})
        for tag in [tag for tag, ref in mapping.items() if ref.removeprefix(_PREFIX) in _IMAGES]:
            del mapping[tag]
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _leave_out_images(inner)


def _image() -> str:
    """An image that can be edited."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """A copy in which answers have no other members than those that it names."""
    document = deepcopy(document)
    schemas = document["components"]["schemas"]
    answers = [
        operation["responses"] for path in document["paths"].values() for operation in path.values()
    ]
    for name in _reached(json.dumps(answers), schemas):
        if "properties" in schemas[name]:
            schemas[name].setdefault("additionalProperties", False)
    return document


def _narrow(schema: dict[str, Any], **limits: Any) -> None:
    for kind in schema.get("anyOf", [schema]):
        if kind.get("type") != "null":
            kind.update(limits)


def _reached(text: str, schemas: dict[str, Any]) -> set[str]:
    """The names of schemas that a text refers to, and that these refer to."""
    found: set[str] = set()
    texts = [text]
    while texts:
        text = texts.pop()
        for name in schemas.keys() - found:
            if f'"{_PREFIX}{name}"' in text:
                found.add(name)
                texts.append(json.dumps(schemas[name]))
    return found
