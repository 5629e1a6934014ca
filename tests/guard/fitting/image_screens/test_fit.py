"""Screens of images, fitted from folders: their threshold, their figures and their report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.images.encoder import ImageEncoder
from guard.artifact import Artifact
from guard.cli import app
from guard.data.image_folders import read_folders
from guard.errors import DataError
from guard.fitting.image_screens.alterations import altered
from tests.classifiers.images import tiny_encoder

COUNT = 30


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARD_CACHE", str(folder))
        model = folder / "models" / "colours"
        tiny_encoder.write(model)
        yield model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red images and others; in "far" red ones that look blue, and blue ones."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, source, colour in (
        ("forget", "near", (210, 30, 30)),
        ("retain", "near", (30, 30, 210)),
        ("retain", "green", (30, 210, 30)),
        ("forget", "far", (210, 60, 60)),
        ("retain", "far", (200, 40, 40)),
    ):
        for number in range(COUNT):
            shade = np.clip(rng.normal(colour, 25), 0, 255).astype(np.uint8)
            path = folder / label / source / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), tuple(map(int, shade))).save(path)
    return folder


def fit(folders: Path, out: Path, *options: str) -> Result:
    named = ["--forget", str(folders / "forget"), "--retain", str(folders / "retain")]
    named += ["--model", "colours", "--concept", "colour/red", "--fpr", "0.05", "--out", str(out)]
    return CliRunner().invoke(app, ["fit", "image-screen", *named, *options])


def test_an_artifact_and_its_report_are_written(folders: Path, tmp_path: Path, cache: Path) -> None:
    result = fit(folders, tmp_path / "red.safetensors", "--hold-out", "far", "--json")
    assert result.exit_code == 0, result.output
    report, artifact = json.loads(result.stdout), Artifact.load(tmp_path / "red.safetensors")
    meta = artifact.meta
    assert (meta.method, meta.seams, meta.model.name) == ("image-screen", ("pixels",), "colours")
    encoder = ImageEncoder.load(cache)
    artifact.require_model(encoder.fingerprint, served="colours")
    assert report["digest"] == artifact.digest
    assert meta.calibration["images"] == {"unsafe": COUNT, "benign": 2 * COUNT}
    tested = meta.calibration["tested"]
    # its benign images are as red as the others: the figures must say so
    assert tested["recall"]["far"]["total"] == tested["false_positives"]["far"]["total"] == COUNT
    assert tested["false_positives"]["far"]["value"] > 0.5
    assert report["judgement"].startswith("not usable: fires on")
    heads = EmbeddingHeads([EmbeddingHead.from_tensors(artifact.tensors, meta.settings)])
    scores = heads.scores(encoder.encode([tiny_encoder.plain(c) for c in ("red", "blue")]))[:, 0]
    assert scores[0] > meta.settings["threshold"] > scores[1]


def test_the_page_shows_the_nearest_mistakes(folders: Path, tmp_path: Path) -> None:
    result = fit(folders, tmp_path / "red.safetensors", "--hold-out", "far")
    assert result.exit_code == 0 and "held-out examples that fire" in result.stdout
    page = (tmp_path / "red.report.html").read_text("utf-8")
    assert "Nearest mistakes: images without it that fire" in page
    assert page.count("data:image/webp;base64,") >= 6
    for name in altered(tiny_encoder.plain("red")):
        assert name in page


def test_the_rate_holds_on_the_images_that_calibrate(folders: Path, tmp_path: Path) -> None:
    result = fit(folders, tmp_path / "red.safetensors", "--hold-out", "far", "--json")
    report = json.loads(result.stdout)
    near = [row for row in report["hit"] if "/near/" in row["prompt"] or "/green/" in row["prompt"]]
    assert len(near) <= 0.05 * 2 * COUNT + 1
    assert report["calibration"]["recall"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hold-out", "nowhere"), "nothing is of the source 'nowhere'"),
        (("--fpr", "0.001"), "needs 999 benign images"),
        (("--model", "absent"), "absent"),
        (("--out", "x.txt"), "ends in .safetensors"),
    ],
)
def test_what_cannot_be_fitted_is_told_in_a_line(
    folders: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = fit(folders, tmp_path / "red.safetensors", *options)
    assert result.exit_code in {1, 2}
    assert message in str(result.exception) + result.output
    assert not (tmp_path / "red.safetensors").exists()


def test_folders_are_checked_before_anything_is_read(folders: Path, tmp_path: Path) -> None:
    empty, broken, twice = (tmp_path / name for name in ("empty", "broken", "twice"))
    for folder in (empty, broken, twice):
        folder.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    source = next((folders / "forget" / "near").iterdir())
    (twice / "copy.png").write_bytes(source.read_bytes())
    forget = folders / "forget"
    for retain, message in (
        (empty, "holds no PNG"),
        (broken, "is no PNG, JPEG or WebP file"),
        (twice, "is the same image"),
        (tmp_path / "absent", "is no folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_folders(forget, retain)


def test_sources_are_the_folders_in_the_given_ones(folders: Path) -> None:
    images = read_folders(folders / "forget", folders / "retain")
    assert {(image.source, image.unsafe) for image in images} == {
        ("near", True), ("far", True), ("near", False), ("far", False), ("green", False),
    }  # fmt: skip
    one = read_folders(folders / "forget" / "near", folders / "retain" / "green")
    assert {image.source for image in one} == {"near", "green"}
