"""CLEAR and FIUBench in the forms of their releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guard.data.benchmarks.clear import NAMING
from guard.data.benchmarks.released import load_benchmark
from guard.errors import DataError
from tests.guard.data.benchmarks.files import save_sheet, tile, write_lines


def _clear(folder: Path) -> Path:
    save_sheet(folder, 8)
    face = {"image": "sheet.png#1", "caption": "Ada stands in a park.", "name": "Ada"}
    text = {"image": None, "question": "What does Ada write?", "answer": "Poems."}
    write_lines(folder / "forget10+tofu.jsonl", [face, text])
    write_lines(folder / "forget10.jsonl", [face])
    kept = {"image": "sheet.png#2", "caption": ["Bo reads.", "Bo, reading."], "name": "Bo"}
    write_lines(folder / "retain90.jsonl", [kept, {"image": None}])
    perturbed = {"perturbed_names": ["Cy", "Di", "Ada"]}
    write_lines(folder / "forget10_perturbed.jsonl", [face | perturbed, face | perturbed])
    write_lines(folder / "retain_perturbed.jsonl", [kept | {"perturbed_names": []}])
    choice = {"question": "Who is it?", "answer": "Eve", "options": ["Flo", "Gus"]}
    write_lines(folder / "real_faces.jsonl", [choice | {"image": "sheet.png#3"}])
    world = {"question": "What is it?", "answer": "cup", "options": ["cup", "hat"], "image": None}
    write_lines(folder / "real_world.jsonl", [world])
    return folder


def test_clear_is_captions_naming_and_questions(tmp_path: Path) -> None:
    benchmark = load_benchmark(_clear(tmp_path), 10)
    assert benchmark.forgotten == benchmark.names == ("Ada",)
    forget = [q for q in benchmark.questions if q.part == "forget"]
    caption, text, first, second = forget
    assert (caption.by, caption.facts) == ("portrait", ("Ada",))
    assert (text.by, text.text, text.truth) == ("name", "What does Ada write?", "Poems.")
    assert text.portrait is None
    # the truth's place goes round, and the name itself is none of the other names
    assert first.text == NAMING and dict(first.options) == {"A": "Ada", "B": "Cy", "C": "Di"}
    assert (first.truth, second.truth) == ("A", "B") and second.options["B"] == "Ada"
    retain = [q for q in benchmark.questions if q.part == "retain"]
    assert [q.truth for q in retain] == ["Bo reads."]
    assert benchmark.skipped == {
        "neither a question nor an image with a caption": 1,
        "no image, name or other names": 1,
    }


def test_the_answer_of_clear_is_among_the_options(tmp_path: Path) -> None:
    benchmark = load_benchmark(_clear(tmp_path), 10)
    (face,) = (q for q in benchmark.questions if q.part == "celebrities")
    assert sorted(face.options.values()) == ["Eve", "Flo", "Gus"]
    assert face.options[face.truth] == "Eve" and face.by == "portrait"
    (world,) = (q for q in benchmark.questions if q.part == "scenes")
    assert sorted(world.options.values()) == ["cup", "hat"]
    assert world.options[world.truth] == "cup" and world.by == "name"


def test_clear_without_that_forget_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no set forget05"):
        load_benchmark(_clear(tmp_path), 5)


def _fiubench(folder: Path, forget: list[Any]) -> Path:
    (folder / "faces").mkdir()
    people = []
    for number in range(3):
        Image.fromarray(tile(number)).save(folder / "faces" / f"{number}.png")
        question = {
            "question": "Where was the person born?",
            "answer": f"In Town{number}.",
            "paraphrased_question": ["Which is the birthplace?", "Born where?"],
            "perturbed_answer": ["In Rome."],
            "keywords": [f"Town{number}"],
        }
        people.append(
            {
                "unique_id": f"u{number}",
                "image_path": f"faces/{number}.png",
                "qa_list": [question, {"question": "And?", "answer": ""}],
            }
        )
    (folder / "full.json").write_text(json.dumps(people), "utf-8")
    (folder / "split.json").write_text(json.dumps({"forget5": forget, "retain95": []}), "utf-8")
    return folder


@pytest.mark.parametrize("forget", [["u1"], [1]])
def test_fiubench_names_people_by_id_or_place(tmp_path: Path, forget: list[Any]) -> None:
    benchmark = load_benchmark(_fiubench(tmp_path, forget), 5)
    assert benchmark.forgotten == ("u1",)
    parts = [(q.part, q.person, q.text) for q in benchmark.questions]
    assert parts == [
        ("retain", "u0", "Where was the person born?"),
        ("forget", "u1", "Where was the person born?"),
        ("test", "u1", "Which is the birthplace?"),
        ("test", "u1", "Born where?"),
        ("retain", "u2", "Where was the person born?"),
    ]
    test = benchmark.questions[2]
    assert test.facts == ("Town1",) and test.portrait is not None
    assert np.array_equal(test.portrait.pixels(), tile(1))
    assert benchmark.skipped == {"no image, question or answer": 3}


def test_fiubench_with_somebody_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nobody has the ID 'u9'"):
        load_benchmark(_fiubench(tmp_path, ["u9"]), 5)
    with pytest.raises(DataError, match="has no people in forget1: it has forget5"):
        load_benchmark(tmp_path, 1)
