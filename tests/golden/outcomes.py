"""The recorded part of a response: all that must stay, and nothing that changes from run to run.

Left out are identifiers, times, and the wording of error messages.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 16
"""Side of the stored thumbnails, in pixels."""

SAME = "the request's"
"""Stands for the verdict of a choice or an image that equals the verdict of its request."""

_GUARD_FIELDS = (
    *("guard", "concept", "method", "score", "threshold", "fired", "action", "position"),
    *("error", "steps", "after", "area", "peak", "place"),
)


def outcome_of(response: httpx.Response) -> dict[str, Any]:
    """The recorded part of any response."""
    outcome = _outcome(response)
    for part in (*outcome.get("choices", ()), *outcome.get("images", ())):
        if "verdict" in part and part["verdict"] == outcome.get("verdict"):
            part["verdict"] = SAME
    return outcome


def _outcome(response: httpx.Response) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": response.status_code}
    if "x-guard-verdict" in response.headers:
        outcome["header"] = response.headers["x-guard-verdict"]
    if response.headers["content-type"].startswith("text/event-stream"):
        return outcome | _stream(response.text)
    body = response.json()
    if "guard" in body:
        outcome["verdict"] = _verdict(body["guard"])
    if response.status_code != 200:
        error = body["error"]
        return outcome | {"error": {key: error[key] for key in ("type", "param", "code")}}
    if "choices" in body:
        outcome["choices"] = [_choice(choice) for choice in body["choices"]]
        outcome["tokens"] = body["usage"]["completion_tokens"]
    elif "results" in body:
        keys = ("flagged", "categories", "category_scores")
        outcome["results"] = [{key: row[key] for key in keys} for row in body["results"]]
    else:
        outcome["images"] = [_image(row) for row in body["data"]]
    return outcome


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of the blocks of an image `[height, width, 3]`, `[THUMBNAIL, THUMBNAIL, 3]`."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL, channels)
    return np.asarray(blocks.mean((1, 3)).round(), np.uint8)


def decoded_thumbnail(text: str) -> NDArray[np.uint8]:
    """A thumbnail as it is stored, `[THUMBNAIL, THUMBNAIL, 3]`."""
    flat = np.frombuffer(base64.b64decode(text), np.uint8)
    return flat.reshape(THUMBNAIL, THUMBNAIL, -1)


def _verdict(verdict: dict[str, Any]) -> dict[str, Any]:
    kept = {key: verdict[key] for key in ("model", "policy", "outcome", "unscreened")}
    kept["guards"] = [
        {key: guard[key] for key in _GUARD_FIELDS if guard.get(key) is not None}
        for guard in verdict["guards"]
    ]
    return kept


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    kept = {"text": text, "finish_reason": choice["finish_reason"]}
    return kept | ({"verdict": _verdict(choice["guard"])} if "guard" in choice else {})


def _stream(text: str) -> dict[str, Any]:
    """Texts, finish reasons and verdicts of a stream, independent of its cuts into events."""
    choices: dict[int, dict[str, Any]] = {}
    outcome: dict[str, Any] = {"choices": []}
    for line in text.splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            outcome["error"] = {key: event["error"][key] for key in ("type", "code")}
        if event.get("guard"):
            outcome["verdict"] = _verdict(event["guard"])
        for choice in event.get("choices", ()):
            kept = choices.setdefault(choice["index"], {"text": "", "finish_reason": None})
            kept["text"] += choice["delta"].get("content") or ""
            kept["finish_reason"] = choice["finish_reason"] or kept["finish_reason"]
            if choice.get("guard"):
                kept["verdict"] = _verdict(choice["guard"])
    return outcome | {"choices": [choices[index] for index in sorted(choices)]}


def _image(row: dict[str, Any]) -> dict[str, Any]:
    pixels = _pixels(row["b64_json"], "RGB")
    kept = {
        "seed": row["seed"],
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "thumbnail": base64.b64encode(thumbnail(pixels).tobytes()).decode(),
        "verdict": _verdict(row["guard"]),
    }
    if row.get("masks"):
        kept["masks"] = {
            guard: hashlib.sha256(_pixels(png, "L").tobytes()).hexdigest()
            for guard, png in row["masks"].items()
        }
    return kept


def _pixels(png: str, mode: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert(mode))
