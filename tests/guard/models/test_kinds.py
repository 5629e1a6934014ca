"""The kind of a model is known before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.errors import ModelError
from guard.models.kinds import kind_of_model


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("model_index.json", {}, "images"),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "language"),
        ("config.json", {"architectures": ["LlavaForConditionalGeneration"]}, "language"),
        ("config.json", {"model_type": "llama"}, "language"),
        ("config.json", {"architectures": ["BertModel"], "model_type": "bert"}, ""),
        ("config.json", {"name": "minilm"}, ""),
        ("config.json", [], ""),
    ],
)
def test_a_folder_says_what_it_is(tmp_path: Path, file: str, content: object, kind: str) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    if kind:
        assert kind_of_model(str(tmp_path)) == kind
        return
    with pytest.raises(ModelError, match="neither a language model nor an image pipeline"):
        kind_of_model(str(tmp_path))


def test_a_source_that_is_nowhere_is_left_to_its_loading() -> None:
    assert kind_of_model("nowhere at all") == "language"
