"""`fit_screen` on words that an encoder of random weights can tell apart."""

from __future__ import annotations

import random

import numpy as np
import pytest

from classifiers.embeddings.first_stage import FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.text.cascade import Cascade, ReadText
from classifiers.text.encoder.conversion import convert
from classifiers.text.encoder.model import TextEncoder
from guard.data.prompts import ScreenText
from guard.errors import DataError
from guard.fitting.screens import figures
from guard.fitting.screens.first_stage import FEWEST
from guard.fitting.screens.fit import ScreenFit, ScreenRecipe, fit_screen
from guard.fitting.screens.report import as_json, as_page
from tests.classifiers.text import tiny_bert


def rows(count: int, source: str, letters: str, *, unsafe: bool, seed: int) -> list[ScreenText]:
    generator = random.Random(seed)
    return [
        ScreenText(
            text="".join(generator.choices(letters, k=generator.randint(6, 14))),
            unsafe=unsafe,
            source=source,
            family=f"{source}-{index // 2}",
        )
        for index in range(count)
    ]


ROWS = [
    *rows(80, "bad", "abcdef", unsafe=True, seed=0),
    *rows(120, "good", "tuvwxyz", unsafe=False, seed=1),
    *rows(40, "bad-elsewhere", "abcdef", unsafe=True, seed=2),
    *rows(40, "good-elsewhere", "tuvwxyz", unsafe=False, seed=3),
]
HELD = ("bad-elsewhere", "good-elsewhere")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    target = folder / "made"
    target.mkdir()
    convert(tiny_bert.write(folder / "source"), target, name="tiny", precision="float32")
    return TextEncoder.load(target)


def fit(
    encoder: TextEncoder,
    texts: list[ScreenText] = ROWS,
    hold_out: tuple[str, ...] = HELD,
    recipe: ScreenRecipe = ScreenRecipe(fpr=0.05),  # noqa: B008
) -> ScreenFit:
    def silent(stage: str, total: int):  # type: ignore[no-untyped-def]
        return lambda count: None

    return fit_screen(encoder, texts, "text/letters", hold_out, recipe, lambda text: [text], silent)


@pytest.fixture(scope="module")
def fitted(encoder: TextEncoder) -> ScreenFit:
    return fit(encoder)


def test_the_artifact_describes_its_fit(encoder: TextEncoder, fitted: ScreenFit) -> None:
    meta = fitted.artifact.meta
    assert (meta.method, meta.concept, meta.seams) == ("screen", "text/letters", ("text",))
    assert meta.model.fingerprint == encoder.fingerprint and meta.model.layers == 3
    assert meta.calibration["texts"] == {"unsafe": 80, "benign": 120}


def test_held_out_texts_are_scored_by_the_head_of_the_artifact(
    encoder: TextEncoder, fitted: ScreenFit
) -> None:
    meta, tested = fitted.artifact.meta, fitted.test
    assert tested is not None
    head = EmbeddingHead.from_tensors(fitted.artifact.tensors, meta.settings)
    held = [row for row in ROWS if row.source in HELD]
    encoded = encoder.encode([row.prompt for row in held], sentences=True)
    by_window = EmbeddingHeads([head]).scores(encoded.embeddings, encoded.windows.sentence)
    scores = encoded.windows.highest(by_window)[:, 0]
    unsafe = np.array([row.unsafe for row in held])
    fired = scores > float(str(meta.settings["threshold"]))
    assert tested.recall["bad-elsewhere"].count == fired[unsafe].sum()
    assert tested.false_positives["good-elsewhere"].count == fired[~unsafe].sum()
    assert tested.auc is not None and tested.auc > 0.85 and tested.all_recall.value > 0.5
    assert len(tested.disguises) == 8


def test_held_out_texts_are_not_trained_on(encoder: TextEncoder, fitted: ScreenFit) -> None:
    """Turning its labels round changes no tensor and no threshold."""
    turned = [
        row.model_copy(update={"unsafe": not row.unsafe}) if row.source in HELD else row
        for row in ROWS
    ]
    again = fit(encoder, turned)
    assert again.artifact.meta.tensors_sha256 == fitted.artifact.meta.tensors_sha256
    assert again.artifact.meta.settings == fitted.artifact.meta.settings


def test_the_threshold_keeps_the_rate_on_each_collection(encoder: TextEncoder) -> None:
    """A small hard collection is not drowned by a large easy one."""
    hard = rows(40, "hard", "aetuvw", unsafe=False, seed=4)
    easy, harder = fit(encoder, hold_out=()), fit(encoder, [*ROWS, *hard], hold_out=())
    thresholds = [
        float(str(fitted_screen.artifact.meta.settings["threshold"]))
        for fitted_screen in (easy, harder)
    ]
    assert thresholds[1] > thresholds[0] and easy.test is None


@pytest.mark.parametrize(
    ("texts", "hold_out", "fpr", "message"),
    [
        (ROWS, ("nowhere",), 0.05, "'nowhere': there are bad, bad-elsewhere, good"),
        (ROWS, HELD, 0.001, "needs 999"),
        (ROWS, ("bad", "bad-elsewhere"), 0.05, "unsafe and benign"),
    ],
)
def test_unusable_rows_are_reported(
    encoder: TextEncoder,
    texts: list[ScreenText],
    hold_out: tuple[str, ...],
    fpr: float,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        fit(encoder, texts, hold_out, ScreenRecipe(fpr=fpr))


def test_the_report_shows_every_collection_and_disguise(fitted: ScreenFit) -> None:
    page, report = as_page(fitted), as_json(fitted, 1.0)
    for shown in ("bad-elsewhere", "good-elsewhere", "base64", "zero-width marks"):
        assert shown in page
    assert "Receiver operating characteristic" in page
    tested = report["calibration"]["tested"]
    assert tested["recall"]["all"]["total"] == 40 and len(tested["disguised_recall"]) == 8
    assert set(report["scores"]) == {"unsafe: bad-elsewhere", "benign: good-elsewhere"}


def test_a_text_that_is_too_long_does_not_count_as_fired() -> None:
    held = figures.HeldOutScores(ROWS[:2], np.array([np.nan, 0.9], np.float32))
    assert held.of(unsafe=True).shape == (2,)
    tested = figures.figures_of(held, 0.5, {})
    assert tested.recall["bad"].count == 1 and tested.auc is None


def test_a_first_stage_comes_with_enough_unsafe_texts(
    encoder: TextEncoder, fitted: ScreenFit
) -> None:
    assert FirstStage.of(fitted.artifact.tensors, fitted.artifact.meta.settings) is None
    figures = fitted.artifact.meta.calibration["first_stage"]
    assert isinstance(figures, dict) and figures["needed"] == FEWEST

    texts = [*ROWS, *rows(240, "more-bad", "abcdef", unsafe=True, seed=5)]
    more = fit(encoder, texts).artifact
    stage = FirstStage.of(more.tensors, more.meta.settings)
    figures = more.meta.calibration["first_stage"]
    assert stage is not None and isinstance(figures, dict)
    held_out, cleared = figures["held_out"], figures["benign_cleared"]
    assert isinstance(held_out, dict) and isinstance(cleared, dict)
    assert held_out["lost"] <= 0.1 * held_out["fire"] > 0  # type: ignore[operator]
    assert cleared["good-elsewhere"] > 0.5  # type: ignore[operator]


def test_a_first_stage_is_no_way_around_the_head(encoder: TextEncoder) -> None:
    """The head's tensors and threshold are the same; with the stage nothing more fires."""
    texts = [*ROWS, *rows(240, "more-bad", "abcdef", unsafe=True, seed=5)]
    artifact = fit(encoder, texts).artifact
    parts = artifact.tensors, artifact.meta.settings
    threshold = float(str(artifact.meta.settings["threshold"]))
    head, stage = EmbeddingHead.from_tensors(*parts), FirstStage.of(*parts)
    heads = EmbeddingHeads([head])
    cascade = Cascade(encoder, heads, FirstStages([stage], [head], [threshold]))
    fresh = [*rows(200, "bad", "abcdef", unsafe=True, seed=6), *ROWS]
    read = [ReadText(row.prompt, [row.prompt], (0,)) for row in fresh]
    alone = Cascade(encoder, heads).scores(read).scores[:, 0] > threshold
    both = cascade.scores(read).scores[:, 0] > threshold
    assert not (both & ~alone).any() and both.sum() >= 0.95 * alone.sum()


def test_the_head_reads_single_sentences(encoder: TextEncoder, fitted: ScreenFit) -> None:
    artifact = fitted.artifact
    head = EmbeddingHead.from_tensors(artifact.tensors, artifact.meta.settings)
    threshold = float(str(artifact.meta.settings["threshold"]))
    unsafe = [row.prompt for row in ROWS if row.source == "bad-elsewhere"]
    embeddings = encoder.encode(unsafe).embeddings
    scores = EmbeddingHeads([head]).scores(embeddings, np.ones(len(unsafe), bool))[:, 0]
    figures = artifact.meta.calibration["sentences"]
    assert isinstance(figures, dict) and figures["rate_of_joined_texts"] == 0.1
    beside = figures["recall_beside_other_text"]
    assert isinstance(beside, dict)
    assert beside["held_out"] == {"count": int((scores > threshold).sum()), "total": 40}
    assert beside["cross_fit"]["total"] == 80  # type: ignore[index, call-overload]
