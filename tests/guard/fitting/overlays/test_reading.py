"""Checkpoints and adapters that the libraries themselves have written, read back as changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guard.errors import DataError
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import NEVER_RUN, Change, Difference
from guard.fitting.overlays.reading import read_difference
from tests.guard.fitting.overlays.checkpoints import LAYOUTS, base, deltas
from tests.steering.tiny import tiny_model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_the_library_adds(layout: str, tmp_path: Path) -> None:
    source, expected = LAYOUTS[layout](tmp_path)
    difference = read_difference(source, base())
    assert layout.startswith(difference.layout)
    got = deltas(difference.changes)
    assert got.keys() == expected.keys() and expected
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, atol=2e-6, rtol=1e-5)


def test_a_tied_weight_is_known_by_both_of_its_names(tmp_path: Path) -> None:
    """Files of some tools have the head beside the embeddings that it is tied to."""
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    changed = {
        name: weight.clone() + 0.01 * (weight.ndim > 1)
        for name, weight in model.state_dict().items()
    }
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= changed.keys()
    save_file(changed, tmp_path / "tuned.safetensors")
    difference = read_difference(tmp_path / "tuned.safetensors", Base({"": model}))
    assert difference.dropped == {"embeddings": ["model.embed_tokens.weight"]}
    assert "model.layers.0.mlp.up_proj" in difference.changes


def test_changes_of_layers_that_were_not_run_are_dropped_by_name() -> None:
    change = Change(torch.ones(2, 2))
    difference = Difference("weights", {"a": change, "b": change}, {"norms": ["n"]})
    assert difference.run({"a", "b"}, "file") is difference
    left = difference.run({"a"}, "file")
    assert left.changes.keys() == {"a"}
    assert left.dropped == {"norms": ["n"], NEVER_RUN: ["b"]}
    assert left.without(["a"], NEVER_RUN).dropped[NEVER_RUN] == ["b", "a"]
    with pytest.raises(DataError, match="file: changes only layers that the base never runs"):
        difference.run((), "file")
