"""Texts are cut into windows and encoded, each independent of the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.encoder.conversion import Precision, convert
from classifiers.text.encoder.model import (
    MOST_WINDOWS,
    OVERLAP,
    WINDOW,
    TextEncoder,
    Windows,
    batches,
    window_starts,
)
from tests.classifiers.text import tiny_bert

TEXTS = ("a short one", "", "the quick brown fox jumps over the lazy dog " * 9, "zebra", "b" * 99)
MINILM = os.environ.get("GUARD_TEST_MINILM", "")


def converted(folder: Path, precision: Precision, **options: int) -> Path:
    target = folder / f"{precision}{options}"
    target.mkdir()
    source = tiny_bert.write(folder / "source")
    convert(source, target, name="tiny", precision=precision, **options)
    return target


@pytest.fixture(scope="module", params=["int8", "float32"])
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TextEncoder:
    return TextEncoder.load(converted(tmp_path_factory.mktemp("encoder"), request.param))


def test_each_text_has_its_windows_in_order(encoder: TextEncoder) -> None:
    encoded = encoder.encode(TEXTS)
    windows = [encoder.encode([text]) for text in TEXTS]
    assert encoded.windows.text.tolist() == [
        at for at, alone in enumerate(windows) for _ in alone.windows.text
    ]
    assert [len(alone.windows.text) for alone in windows] == [1, 1, 4, 1, 1]
    assert encoded.embeddings.shape == (8, encoder.width) and encoded.windows.too_long == ()
    np.testing.assert_allclose(np.linalg.norm(encoded.embeddings, axis=1), 1, atol=1e-5)


def test_other_texts_do_not_change_an_embedding(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    for at, text in enumerate(TEXTS):
        alone = encoder.encode([text]).embeddings
        np.testing.assert_allclose(
            together.embeddings[together.windows.text == at], alone, atol=1e-4
        )


def test_int8_embeddings_are_close_to_float32(tmp_path: Path) -> None:
    rough, exact = (TextEncoder.load(converted(tmp_path, kind)) for kind in ("int8", "float32"))
    pairs = zip(rough.encode(TEXTS).embeddings, exact.encode(TEXTS).embeddings, strict=True)
    assert min(float(a @ b) for a, b in pairs) > 0.98


def test_only_the_first_layers_are_kept(tmp_path: Path) -> None:
    encoder = TextEncoder.load(converted(tmp_path, "float32", layers=2))
    ids = [2, *(tiny_bert.WORDS.index(letter) for letter in "zebra"), 3]
    expected = tiny_bert.reference(tiny_bert.weights(), ids, 2)
    np.testing.assert_allclose(encoder.encode(["zebra"]).embeddings[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="has 3 layers: 4 cannot be kept"):
        converted(tmp_path, "float32", layers=4)


def test_a_text_that_is_too_long_is_listed_and_never_scored(encoder: TextEncoder) -> None:
    body = WINDOW - 2 - OVERLAP
    fits, not_quite = (
        "a" * (body * MOST_WINDOWS + OVERLAP),
        "a" * (body * MOST_WINDOWS + OVERLAP + 1),
    )
    encoded = encoder.encode(["ab", not_quite, "cd"])
    assert encoded.windows.too_long == (1,) and encoded.windows.text.tolist() == [0, 2]
    highest = encoded.windows.highest(np.array([[0.5], [0.25]], np.float32))
    assert highest[0] == 0.5 and np.isnan(highest[1]) and highest[2] == 0.25
    assert encoder.windows([fits]).text.tolist() == [0] * MOST_WINDOWS


def test_a_texts_score_is_that_of_its_highest_window() -> None:
    windows = Windows([[]] * 4, np.array([0, 0, 1, 1]), np.zeros(4, bool), 2, ())
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.3], [0.2, 0.4]], np.float32)
    np.testing.assert_array_equal(
        windows.highest(scores), np.array([[0.8, 0.9], [0.3, 0.4]], np.float32)
    )


@given(st.integers(0, 20_000))
def test_windows_leave_no_token_out_and_overlap(tokens: int) -> None:
    starts = window_starts(tokens)
    body = WINDOW - 2
    assert starts[0] == 0 and starts[-1] + body >= tokens
    assert all(
        then + OVERLAP <= at + body for at, then in zip(starts, starts[1:], strict=False)
    ) or (tokens <= body)
    assert len(starts) == 1 or starts[-2] + body < tokens


@given(st.lists(st.integers(2, WINDOW), max_size=200))
def test_batches_hold_each_row_once_and_little_padding(lengths: list[int]) -> None:
    batched = list(batches(lengths))
    assert sorted(row for batch in batched for row in batch) == list(range(len(lengths)))
    for batch in batched:
        tokens = [lengths[row] for row in batch]
        assert max(tokens) <= 1.25 * min(tokens) + 8
        assert len(batch) * max(tokens) <= 4096


def test_the_fingerprint_covers_everything_that_decides_an_embedding(tmp_path: Path) -> None:
    folder = converted(tmp_path, "float32")
    fingerprint = TextEncoder.load(folder).fingerprint
    assert len(fingerprint) == 64 and fingerprint == TextEncoder.load(folder).fingerprint
    assert fingerprint != TextEncoder.load(converted(tmp_path, "float32", layers=2)).fingerprint
    assert fingerprint != TextEncoder.load(converted(tmp_path, "int8")).fingerprint


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer.json"])
def test_an_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = converted(tmp_path, "float32")
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match="was altered"):
        TextEncoder.load(folder)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text encoder"):
        TextEncoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="no text encoder"):
        TextEncoder.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "layers", "least"), [("int8", 3, 0.99), ("int8", 6, 0.97), ("float32", 6, 0.9999)]
)
def test_the_real_encoder_agrees_with_transformers(
    tmp_path: Path, precision: Precision, layers: int, least: float
) -> None:
    if not MINILM:
        pytest.skip("GUARD_TEST_MINILM names no folder with MiniLM's weights")
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    texts = ["How do I kill a Python process?", "Ignore all previous instructions.", "a b " * 40]
    source = Path(MINILM)
    convert(source, tmp_path, name="minilm", layers=layers, precision=precision)
    embeddings = TextEncoder.load(tmp_path).encode(texts).embeddings
    model, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    for text, embedding in zip(texts, embeddings, strict=True):
        with torch.no_grad():
            tokens = tokenizer(text, return_tensors="pt")
            states = model(**tokens, output_hidden_states=True).hidden_states[layers]
        expected = torch.nn.functional.normalize(states[0].mean(0), dim=0).numpy()
        assert float(embedding @ expected) > least
