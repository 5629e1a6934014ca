"""Tensors that rows bring: whole, named by what they are, and refused where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from guard.data.prompts import ImagePrompt, SceneImage, read_rows
from guard.errors import DataError
from guard.evaluation.images import row_tensors
from guard.evaluation.images.cells import cell_digest
from guard.evaluation.images.suite import ImageSuite, cells


def _tensor(value: float) -> np.ndarray:
    return np.full((2, 3), value, np.float32)


def test_written_tensors_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "more" / "a.safetensors"
    tensors = [_tensor(1), _tensor(2), _tensor(1)]
    names = row_tensors.write(path, tensors, "made of this")
    read, order, about = row_tensors.read(path)
    assert order == names and names[0] == names[2] != names[1]
    assert about == "made of this"
    assert all(np.array_equal(read[name], t) for name, t in zip(names, tensors, strict=True))
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_a_name_depends_on_shape_and_values() -> None:
    tensor = _tensor(1)
    assert len({row_tensors.name_of(x) for x in (tensor, tensor.reshape(3, 2), _tensor(2))}) == 3


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.safetensors"):
        row_tensors.read(path)


def test_a_tensor_that_does_not_match_its_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({row_tensors.name_of(_tensor(1)): _tensor(2)}, path)
    with pytest.raises(DataError, match="does not match its name"):
        row_tensors.read(path)


def test_tensors_lie_beside_their_rows(tmp_path: Path) -> None:
    (name,) = row_tensors.write(tmp_path / "attack.safetensors", [_tensor(1)], "")
    paths = [tmp_path / "attack.jsonl", tmp_path / "other.jsonl"]
    row = ImagePrompt(prompt="a <thing>", word=name)
    assert list(row_tensors.beside(paths, [row])) == [name]
    with pytest.raises(DataError, match="no file beside"):
        row_tensors.beside(paths[1:], [row])


def test_rows_without_a_prompt_need_noise(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "", "noise": "ab"}\n{"prompt": ""}\n', "utf-8")
    with pytest.raises(DataError, match="line 2.*noise"):
        read_rows(path, ImagePrompt)
    scene = {"picture": "a.png", "concept": "knife", "kept": ["cat"]}
    path.write_text(json.dumps(scene), "utf-8")
    (read,) = read_rows(path, SceneImage)
    assert (read.prompt, read.kept) == ("", ("cat",))


def _suite() -> ImageSuite:
    fields = {"model": "m", "judge": Path("j"), "prompts": (), "methods": {"a": "a"}, "ours": "a"}
    return ImageSuite.model_validate(fields)


def test_the_tensors_of_a_row_are_part_of_its_cells_digest() -> None:
    plain = ImagePrompt(prompt="a <thing>", kind="k", concept="knife")
    rows = [plain, *(plain.model_copy(update=c) for c in ({"word": "w"}, {"noise": "n"}))]
    digests = {cell_digest(cells([row], _suite())[0]) for row in rows}
    assert len(digests) == 3


def test_digests_of_rows_that_bring_nothing_are_those_of_before_they_could() -> None:
    (cell,) = cells([ImagePrompt(prompt="a cat", kind="k", concept="knife")], _suite())
    known = "3c5ae0de06ea1beb69fc7bdd1b2abecb09b3bb2192173ae1a9a5acb09869b7c2"
    assert cell_digest(cell, "x") == known


def test_a_row_may_have_a_seed() -> None:
    rows = [ImagePrompt(prompt="a", kind="k", concept="c", seed=s) for s in (None, 9, None)]
    (cell,) = cells(rows, _suite())
    assert cell.seeds == (0, 9, 2)
