"""`guard serve` as a process, with tiny models for text and images, keys, screens and erasures."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from guard.artifact import Artifact
from steering.fingerprint import fingerprint
from tests.server.tiny_pipeline import save_pipeline
from tests.server.tiny_text_service import (
    ALWAYS,
    save_model,
    steer_meta,
    steer_tensors,
    tokenizer,
)

ROOT = Path(__file__).parents[3]
KEY = "key-of-the-generated-requests"
MODELS = {"text": "tiny", "images": "drawer"}
POLICIES = ("none", "steer", "block", "private")
MOST_TOKENS = 8
_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"

_CONFIG = """
[server]
admin_hash = "{digest}"
max_tokens_limit = {most}
max_batch = 8
[erasures]
folder = "erasures"
[[models]]
name = "tiny"
source = "model"
device = "cpu"
[[models]]
name = "drawer"
engine = "diffusers"
source = "pipeline"
device = "cpu"
steps = 2
[[guards]]
name = "always"
artifact = "always.safetensors"
[[patterns]]
name = "personal-data"
source = "personal-data"
[policies.steer]
guards = ["always"]
action = "steer"
[policies.block]
guards = ["always"]
action = "block"
message = "No."
[policies.private]
guards = ["personal-data"]
action = "redact"
[[keys]]
hash = "{digest}"
tenant = "generated"
policies = {policies}
"""


@contextmanager
def tiny_server(folder: Path) -> Iterator[str]:
    """The URL of a server whose files are written into `folder`; its log is there, too."""
    _save_text_model(folder)
    save_pipeline(folder / "pipeline")
    digest = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    config = folder / "config.toml"
    config.write_text(
        _CONFIG.format(digest=digest, most=MOST_TOKENS, policies=json.dumps(POLICIES))
    )
    command = [sys.executable, "-m", "guard", "serve", "--port", "0", "--json"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "server.log").read_text()
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(30)


def _save_text_model(folder: Path) -> None:
    """The tiny model of other tests, of which no letter is NaN and no system message is refused,
    and a guard that always fires."""
    model = save_model(folder / "model")
    encoder = tokenizer()
    encoder.chat_template = _TEMPLATE
    with torch.no_grad():
        model.get_input_embeddings().weight.nan_to_num_()
    model.save_pretrained(folder / "model")
    encoder.save_pretrained(folder / "model")
    meta = steer_meta(fingerprint(model), threshold=ALWAYS)
    Artifact(meta, steer_tensors()).save(folder / "always.safetensors")
