"""What a report embeds: images pixel by pixel, plots that are the same each time."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from guard.reporting import plots
from guard.reporting.page import Grid, Images, render
from guard.reporting.pngs import png, uri


def test_a_image_keeps_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    read = Image.open(io.BytesIO(base64.b64decode(png(image))))
    assert np.array_equal(np.asarray(read), image)


def test_plots_are_the_same_each_time_and_need_every_group() -> None:
    shares = {"direct": {"bare": (0.9, 0.8, 1.0), "ours": (0.0, 0.0, 0.1)}, "pair": {}}
    shares["pair"]["bare"] = (0.5, 0.4, 0.6)
    assert plots.groups(shares, y="%") == plots.groups(shares, y="%")
    lines = {"ours": {0: (0.1, 0.0, 0.2), 40: (0.3, 0.2, 0.4)}, "bare": {40: (0.9, 0.8, 1.0)}}
    drawn = plots.efforts(lines, x="effort", y="%", limits=[0.1])
    assert drawn == plots.efforts(lines, x="effort", y="%", limits=[0.1])
    assert drawn.startswith("data:image/svg+xml;base64,")


def test_a_grid_of_images_escapes_its_labels_and_leaves_gaps() -> None:
    image = uri(png(np.zeros((2, 2, 3), np.uint8)))
    grid = Images("Pictures", ("bare", "ours"), [("<b>", [(image, "cat & dog"), None])])
    page = render("title", "", [], [grid])
    assert "<td>&lt;b&gt;</td>" in page and "cat &amp; dog" in page
    assert page.count("<img") == 1


def test_a_figure_is_above_the_parts_in_its_brackets() -> None:
    row = ("a (b)", "3.0% (3/100; 1.0% to 8.5%)", "-16.7% (-34.3% to -3.4%)")
    page = render("title", "", [], [Grid("Table", ("", "", ""), [row])])
    assert "<td>a (b)</td>" in page
    assert "<td>3.0%<small>3/100</small><small>1.0% to 8.5%</small></td>" in page
    assert "<td>-16.7%<small>-34.3% to -3.4%</small></td>" in page
