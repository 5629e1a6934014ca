"""The suite with policies that inspect images: their effect is known after generation only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from guard.data.prompts import ImagePrompt
from guard.evaluation.images import figures as figures
from guard.evaluation.images.comparison import outside_psnr
from guard.evaluation.images.evaluation import EvaluatedCell
from guard.evaluation.images.report import ImageReport
from tests.guard.evaluation.images.fakes import CONCEPTS, FakeGenerator
from tests.guard.evaluation.images.test_evaluation import _evaluation, _Progress, _quiet

METHODS = {"good": "{concept}-good", "seen": "{concept}-seen", "redrawn": "{concept}-redrawn"}
HARD = "a knife-edge ridge"


def prompts() -> list[ImagePrompt]:
    def row(kind: str, prompt: str, concept: str = "knife", **more: object) -> ImagePrompt:
        fields = {"concept": concept, "kind": kind, "prompt": prompt}
        return ImagePrompt.model_validate(fields | more)

    rows = [row("direct", "a knife") for _ in range(6)]
    rows += [row("pair", "a knife and a cat", kept=["cat"]) for _ in range(4)]
    rows += [row("hard", text) for text in (HARD, "a spoon")]
    # of the second two, one draws a knife although nobody has asked for it
    rows += [row("clean", text) for text in ("a cat", "a car", "a cat", "a sharp knife")]
    return rows


def evaluated(folder: Path, generator: FakeGenerator, **changes: object) -> list[EvaluatedCell]:
    settings = {"methods": METHODS, "verify": 0} | changes
    return _evaluation(folder, generator, **settings)[1].run(prompts(), _quiet)


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def cells(tmp_path: Path, generator: FakeGenerator) -> list[EvaluatedCell]:
    return evaluated(tmp_path, generator)


def fields_of(cells: list[EvaluatedCell], method: str, kind: str) -> dict[str, list[object]]:
    return {
        field: [
            getattr(image, field)
            for item in cells
            if item.cell.kind == kind
            for _, image in item.judgements(method)
        ]
        for field in ("same", "fired", "blocked", "view", "score", "thumbnail")
    }


@pytest.mark.usefixtures("cells")
def test_prompts_that_must_stay_silent_are_generated(generator: FakeGenerator) -> None:
    silent = {"a cat", "a car", "a sharp knife", HARD, "a spoon"}
    generated = {
        method: {prompt for prompt, _, policy in generator.generated if policy == f"knife-{method}"}
        for method in ("good", "seen", "redrawn")
    }
    assert generated["seen"] & silent == generated["redrawn"] & silent == silent
    # not if inspecting the prompt is enough
    assert not generated["good"] & silent


def test_a_blocked_image_shows_nothing_and_is_not_the_same(cells: list[EvaluatedCell]) -> None:
    direct = fields_of(cells, "seen", "direct")
    assert direct["blocked"] == direct["fired"] == [True] * 6
    assert direct["view"] == direct["thumbnail"] == [None] * 6
    assert direct["same"] == [False] * 6 and direct["score"] == [7.0] * 6
    rate = figures.reproduced(figures.judgements(cells, "seen", "direct"))
    assert (rate.count, rate.total) == (0, 6)
    # nothing of a pair is kept where there is no image
    assert figures.kept_ratio(cells, "seen").value == 0.0


def test_a_false_alarm_counts_against_silence(cells: list[EvaluatedCell]) -> None:
    for method in ("seen", "redrawn"):
        clean = figures.same(figures.judgements(cells, method, "clean"))
        assert (clean.count, clean.total) == (3, 4)
        hard = figures.same(figures.judgements(cells, method, "hard"))
        assert (hard.count, hard.total) == (2, 2)
    # a prompt's guard takes the hard negative's word for it
    assert figures.same(figures.judgements(cells, "good", "hard")).count == 1


def test_a_replaced_image_is_judged_on_the_replacement(cells: list[EvaluatedCell]) -> None:
    direct = fields_of(cells, "redrawn", "direct")
    assert [view.concepts for view in direct["view"]] == [("banana",)] * 6  # type: ignore[attr-defined]
    assert direct["blocked"] == direct["same"] == [False] * 6 and direct["fired"] == [True] * 6
    bare = fields_of(cells, "bare", "direct")
    assert [view.concepts for view in bare["view"]] == [("knife",)] * 6  # type: ignore[attr-defined]
    assert figures.reproduced(figures.judgements(cells, "redrawn", "direct")).count == 0
    # what stood beside the knife is gone with it
    assert figures.kept_ratio(cells, "redrawn").value == 0.0


def test_unchanged_images_are_judged_too(cells: list[EvaluatedCell]) -> None:
    clean = fields_of(cells, "seen", "clean")
    assert clean["same"] == [True, True, True, False]
    views = [item and item.concepts for item in clean["view"]]  # type: ignore[attr-defined]
    assert views == [("cat",), ("car",), ("cat",), None]


def test_every_generated_image_is_counted(
    cells: list[EvaluatedCell], generator: FakeGenerator
) -> None:
    counted = sum(item.results["seen"].generated for item in cells)
    assert counted == sum(policy == "knife-seen" for _, _, policy in generator.generated) == 16


def test_bits_are_compared_and_nothing_is_equal_to_no_image(tmp_path: Path) -> None:
    class Wavering(FakeGenerator):
        """Blocks everything the second time."""

        def _outcome(self, outcome: object, policy: str | None, seed: int) -> object:  # type: ignore[override]
            again = sum(p == policy and s == seed for _, s, p in self.generated) > 1
            if policy and policy.endswith("seen") and again:
                return type(outcome)(outcome.effect, None)  # type: ignore[call-arg,attr-defined]
            return super()._outcome(outcome, policy, seed)  # type: ignore[arg-type]

    steady = evaluated(tmp_path, FakeGenerator(), verify=3)
    assert figures.verified(steady, "seen").value == 1.0
    (tmp_path / "other").mkdir()
    wavering = evaluated(tmp_path / "other", Wavering(), verify=3)
    assert figures.verified(wavering, "seen").count == 0
    assert figures.verified(wavering, "good").value == 1.0


def test_progress_reaches_its_totals(tmp_path: Path) -> None:
    progress = _Progress()
    evaluation = _evaluation(tmp_path, FakeGenerator(), methods=METHODS, verify=2)[1]
    evaluation.run(prompts(), progress)  # type: ignore[arg-type]
    assert [total for _, total in progress.stages] == progress.done


def test_the_report_shows_blocked_images(cells: list[EvaluatedCell]) -> None:
    page = ImageReport(cells, "good", len(CONCEPTS)).page("Pictures", "today")
    assert "blocked" in page and page.count("data:image/webp;base64,") >= 4


def test_methods_with_the_same_guards_of_images_share_images(
    tmp_path: Path, generator: FakeGenerator
) -> None:
    methods = {"seen": "{concept}-seen", "both": "{concept}-good-seen"}
    cells = evaluated(tmp_path, generator, methods=methods, ours="both")
    both = [(item.cell, item.results["both"]) for item in cells if "both" in item.results]
    generated = {prompt for prompt, _, policy in generator.generated if policy == "knife-good-seen"}
    # where the guard of prompts acts, the image is another one
    assert generated and all("knife" in prompt for prompt in generated)
    for cell, result in both:
        alone = next(item for item in cells if item.cell == cell).results["seen"]
        taken = [i for i, row in enumerate(cell.rows) if "knife" not in row.prompt]
        assert [result.images[i].view for i in taken] == [alone.images[i].view for i in taken]
        assert all(result.images[i].score == 0.1 for i in taken)
    assert sum(result.generated for cell, result in both if cell.silent) == len(
        {HARD, "a sharp knife"}
    )


def test_only_pixels_outside_of_the_mask_count() -> None:
    bare = np.zeros((8, 8, 3), np.uint8)
    image, mask = bare.copy(), np.zeros((4, 4), np.float32)
    mask[0, 1] = 0.2
    image[:2, 2:4] = 255  # its cell of the latents' grid
    assert outside_psnr(image, mask, bare) == 99.0
    image[2, 2] = 255
    # one of 60 pixels
    assert outside_psnr(image, mask, bare) == pytest.approx(10 * math.log10(60))
    assert outside_psnr(image, np.ones((4, 4), np.float32), bare) == 99.0
