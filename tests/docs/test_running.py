"""The Python of the pages that needs a model, against a server of the embedded ones."""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guard
from guard.models.sources import add_model
from tests.docs.pages import ROOT, Block, blocks, name
from tests.docs.test_blocks import NEEDS_MODEL

ELSEWHERE = {"docs/vllm.md"}
"""Pages whose examples want another environment: they are parsed only."""
CHANGES = (
    # what single examples ask for beyond the default
    ("[server]\n", "[server]\nembeddings = true\n"),
    ('guards = ["knife-cgce", "knife-latents"]\n', 'guards = ["knife-irece"]\ndebug = true\n'),
    (
        "[policies.harry-potter]\n",
        '[[guards]]\nname = "knife-irece"\n'
        'artifact = "examples/emoji/fitted/knife-irece.safetensors"\n\n'
        # the guard that a page has made, and a model that it has added: by their names alone
        '[policies.books]\nguards = ["harry-potter"]\naction = "steer"\n\n'
        "[policies.harry-potter]\n",
    ),
    (
        '[[models]]\nname = "emoji"\n',
        '[[models]]\nname = "qwen-0.5b"\nsource = "smollm2"\ntool_parser = "json"\n\n'
        '[[models]]\nname = "emoji"\n',
    ),
)
BY_PAGE = [
    list(of_page)
    for page, of_page in groupby(blocks("python"), key=lambda block: name(block.page))
    if page not in ELSEWHERE
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples expect to find where they run."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "examples").symlink_to(ROOT / "examples")
    config = (ROOT / "config.toml").read_text(encoding="utf-8")
    for old, new in CHANGES:
        assert config.count(old) == 1, f"config.toml has {old!r} no longer"
        config = config.replace(old, new)
    (folder / "config.toml").write_text(config, encoding="utf-8")
    from PIL import Image

    Image.new("RGB", (64, 64), "orange").save(folder / "cat.png")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Of `guard serve` on that configuration."""
    for model in ("smollm2", "emoji"):
        add_model(model)
    command = [sys.executable, "-m", "guard", "serve", "--port", "0", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.send_signal(signal.SIGTERM)


def _given(page: str) -> dict[str, Any]:
    """What the examples of a page take as there."""
    if page == "docs/images.md":
        # diffusers loads a class of another package where that is imported: `load_pipeline` does it
        importlib.import_module("steering.engines.diffusion.patch_autoencoder")
        return {"path": add_model("emoji").path}
    if page not in ("docs/fitting.md", "docs/serving.md"):
        return {}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, prompt = add_model("smollm2").path, "Which school does Harry Potter go to?"
    tokenizer = AutoTokenizer.from_pretrained(path)
    return {
        "base64": base64,
        "guard": guard,
        "learned": np.full((1, 384), 0.01, np.float32),
        "model": AutoModelForCausalLM.from_pretrained(path),
        "tokenizer": tokenizer,
        "prompt": tokenizer(prompt, return_tensors="pt") if page == "docs/fitting.md" else prompt,
    }


@pytest.mark.parametrize("page", BY_PAGE, ids=lambda page: name(page[0].page))
def test_the_examples_of_a_page_run_in_order(
    page: list[Block], url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    namespace = _given(name(page[0].page))
    for block in page:
        if NEEDS_MODEL.search(block.code):
            code = block.code.replace("http://127.0.0.1:8000", url)
            exec(compile(code, block.place, "exec"), namespace)
        if name(block.page) == "README.md":
            reply = namespace["reply"]
            outcome = (reply.model_extra or {})["guard"]["outcome"]
            assert outcome in {"steered", "refined"}
