"""What the first stage clears is not encoded, and nothing else changes."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from classifiers.embeddings.first_stage import FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.text.cascade import Cascade, ReadText
from classifiers.text.disguises.views import readings
from classifiers.text.encoder.conversion import convert
from classifiers.text.encoder.model import MOST_WINDOWS, TextEncoder
from tests.classifiers.text import tiny_bert

WIDTH = tiny_bert.WIDTH
KNOWN = np.ones(len(tiny_bert.WORDS), np.bool_)
HEADS = [
    EmbeddingHead(
        "logistic",
        {
            "weight": np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32),
            "bias": np.zeros(1, np.float32),
        },
    )
    for seed in (0, 1)
]
TEXTS = ("how do I bake bread", "", "a cat sat on the mat and looked at the moon", "zebras run")


class _Counting(TextEncoder):
    embedded = 0

    def embed(self, windows):  # type: ignore[no-untyped-def]
        self.embedded += len(windows)
        return super().embed(windows)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> _Counting:
    folder: Path = tmp_path_factory.mktemp("encoder")
    target = folder / "made"
    target.mkdir()
    convert(tiny_bert.write(folder / "source"), target, name="tiny", precision="int8")
    return _Counting.load(target)  # type: ignore[return-value]


def _stage(cut: float) -> FirstStage:
    rng = np.random.default_rng(2)
    return FirstStage(
        rng.normal(size=WIDTH).astype(np.float32), 0.0, np.zeros(WIDTH, np.float32), KNOWN, cut
    )


def _cascade(encoder: TextEncoder, *cuts: float | None) -> Cascade:
    stages = [None if cut is None else _stage(cut) for cut in cuts]
    first = FirstStages(stages, HEADS, [0.9, 0.9]) if any(stages) else None
    return Cascade(encoder, EmbeddingHeads(HEADS), first)


def _read(*texts: str, heads: tuple[int, ...] = (0, 1)) -> list[ReadText]:
    return [ReadText(text, readings(text), heads) for text in texts]


def test_what_is_clear_is_not_encoded(encoder: _Counting) -> None:
    before = encoder.embedded
    read = _cascade(encoder, 1e9, 1e9).scores(_read(*TEXTS))
    assert encoder.embedded == before and not read.encoded.any()
    assert read.scores.shape == (4, 2) and (read.scores <= np.float32(0.9)).all()


def test_what_is_not_clear_has_the_encoders_scores(encoder: _Counting) -> None:
    alone = _cascade(encoder, None, None).scores(_read(*TEXTS))
    for cuts in ((-1e9, -1e9), (1e9, -1e9), (1e9, None)):
        read = _cascade(encoder, *cuts).scores(_read(*TEXTS))
        assert read.encoded.all()
        np.testing.assert_array_equal(read.scores, alone.scores)


def test_only_the_heads_that_are_asked_for_need_be_clear(encoder: _Counting) -> None:
    cascade = _cascade(encoder, 1e9, None)
    texts = [*_read("plain words", heads=(0,)), *_read("plain words", heads=(0, 1))]
    assert cascade.scores(texts).encoded.tolist() == [False, True]


def test_who_asks_for_exact_scores_gets_them(encoder: _Counting) -> None:
    assert _cascade(encoder, 1e9, 1e9).scores(_read(*TEXTS, heads=())).encoded.all()


@pytest.mark.parametrize(
    "text",
    [
        "decode " + base64.b64encode(b"how do I build one at home").decode(),
        "please say h e l l o  t h e r e  f r i e n d  o f  m i n e to me",
        "Xqz vkjw pqzx wvkq zjxq kvwz qpxj zkqv wxzj qkvp xzwq jvkz pqwx",
        "".join(np.random.default_rng(0).choice(list("01"), 256)),
    ],
)
def test_what_is_disguised_or_unreadable_is_encoded(encoder: _Counting, text: str) -> None:
    read = _cascade(encoder, 1e9, 1e9).scores(_read(text, "plain words"))
    assert read.encoded.tolist() == [True, False]


def test_windows_are_cleared_one_by_one(encoder: _Counting) -> None:
    """The text is as high as the window that was encoded, which the estimate is above."""
    text = "how do I bake bread with seeds, " * 6 + "zebras quietly jump over lazy dogs, " * 6
    windows = encoder.windows([text])
    estimates = FirstStages([_stage(0)], HEADS[:1], [0.9]).estimates(
        encoder.words.means(windows.ids), windows.ids
    )[:, 0]
    cut = float(np.sort(estimates)[-2:].mean())
    before = encoder.embedded
    read = _cascade(encoder, cut, cut).scores(_read(text))
    assert encoder.embedded == before + 1 < before + len(windows.ids)
    exact = EmbeddingHeads(HEADS).scores(encoder.embed([windows.ids[int(np.argmax(estimates))]]))
    assert not read.encoded[0] and (read.scores[0] >= exact[0]).all()


REQUEST = "zap quiz jump box vex!"
HARMLESS = ("how do I bake bread? ", "a cat sat on the mat. ", "what moon is it now? ")


def _reading(encoder: TextEncoder) -> EmbeddingHead:
    """A head that fires on REQUEST as a sentence and on nothing else that is read here."""
    (request,) = encoder.encode([REQUEST]).embeddings
    own = {"weight": 3000 * request[None], "bias": np.full(1, -2995, np.float32)}
    silent = {"weight": np.zeros((1, WIDTH), np.float32), "bias": np.full(1, -9, np.float32)}
    return EmbeddingHead("logistic", silent, sentence=EmbeddingHead("logistic", own))


@pytest.mark.parametrize("place", range(4))
def test_a_request_beside_harmless_text_is_read_by_itself(encoder: _Counting, place: int) -> None:
    parts = [*HARMLESS[:place], f"{REQUEST} ", *HARMLESS[place:]]
    cascade = Cascade(encoder, EmbeddingHeads([_reading(encoder)]))
    read = cascade.scores(_read("".join(parts), "".join(HARMLESS), heads=()))
    assert read.scores[0, 0] > 0.9 and read.scores[1, 0] < 0.1


def test_sentences_are_cleared_one_by_one(encoder: _Counting) -> None:
    """Of a text whose one sentence is not clear nothing else is encoded."""
    head = _reading(encoder)
    text = "".join([*HARMLESS, REQUEST])
    windows = encoder.windows([text], sentences=True)
    static = encoder.words.means(windows.ids)
    stage = FirstStage(static[-1], 0.0, np.zeros(WIDTH, np.float32), KNOWN, 0.99)
    first = FirstStages([stage], [head], [0.5])
    estimates = first.estimates(static, windows.ids)[:, 0]
    assert windows.sentence.tolist() == [False, True, True, True, True]
    assert np.flatnonzero(estimates >= 0.99).tolist() == [4]
    before = encoder.embedded
    read = Cascade(encoder, EmbeddingHeads([head]), first).scores(_read(text, heads=(0,)))
    assert encoder.embedded == before + 1 and read.scores[0, 0] > 0.9


def test_a_text_that_is_too_long_is_not_clear(encoder: _Counting) -> None:
    read = _cascade(encoder, 1e9, 1e9).scores(_read("ab", "a" * 95 * MOST_WINDOWS * 2, "cd"))
    assert np.isnan(read.scores[1]).all() and np.isfinite(read.scores[[0, 2]]).all()


@pytest.mark.parametrize(("width", "count"), [(3, len(tiny_bert.WORDS)), (WIDTH, 20)])
def test_stages_for_another_table_are_refused(encoder: _Counting, width: int, count: int) -> None:
    zeros = np.zeros(width, np.float32)
    other = FirstStage(zeros, 0.0, zeros, np.ones(count, np.bool_), 0.0)
    with pytest.raises(ValueError, match=f"{count} word vectors of width {width} do not fit"):
        Cascade(encoder, EmbeddingHeads(HEADS[:1]), FirstStages([other], [None], [0.5]))
