from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from guard import artifact as module
from guard.artifact import Artifact, ArtifactMeta
from guard.errors import ArtifactError, FingerprintError
from tests.guard.conftest import MakeArtifact

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
TENSORS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5),
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    max_size=3,
)


def meta(**fields: Any) -> ArtifactMeta:
    model = {"name": "m", "architecture": "a", "fingerprint": "f", "layers": 1, "width": 1}
    base = {"method": "steer", "concept": "c", "created": "2026-01-31", "seams": ["hidden"]}
    return ArtifactMeta.model_validate(base | {"model": model} | fields)


@given(TENSORS, st.dictionaries(st.text(max_size=5), JSON, max_size=3))
@settings(max_examples=50, deadline=None)
def test_a_saved_artifact_can_be_loaded(tensors: dict[str, Any], values: dict[str, Any]) -> None:
    artifact = Artifact(meta(settings=values), tensors)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
        artifact.save(first)
        loaded = Artifact.load(first)
        loaded.save(second)
        assert first.read_bytes() == second.read_bytes()
    assert loaded.meta == artifact.meta
    assert loaded.digest == artifact.digest
    assert set(loaded.tensors) == set(tensors)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], expected, strict=True)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_end_in_anything_but_an_artifact_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        for variant in (content, len(content).to_bytes(8, "little") + content):
            path.write_bytes(variant)
            with pytest.raises(ArtifactError, match=r"x\.safetensors"):
                Artifact.load(path)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_one_flipped_bit_is_never_taken_for_the_same_guard(data: st.DataObject) -> None:
    artifact = Artifact(meta(), {"w": np.ones(4, np.float32)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        artifact.save(path)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            loaded = Artifact.load(path)
        except ArtifactError:
            return
        # A bit of the metadata that stays sound changes the digest; insignificant space may not.
        assert loaded.digest != artifact.digest or loaded.meta == artifact.meta


def test_the_digest_covers_tensors_and_metadata(make_artifact: MakeArtifact) -> None:
    digests = {
        make_artifact().digest,
        make_artifact(description="other").digest,
        make_artifact({"direction": np.zeros(8, "f4")}).digest,
        make_artifact({"direction": np.zeros((2, 4), "f4")}).digest,
    }
    assert len(digests) == 4
    assert make_artifact().short_digest == make_artifact().digest[:12]


def test_a_truncated_file_is_refused(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    path = tmp_path / "a.safetensors"
    make_artifact().save(path)
    content = path.read_bytes()
    for size in (0, 4, 8, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ArtifactError, match=r"a\.safetensors: .*(truncated|damaged)"):
            Artifact.load(path)


def test_an_altered_tensor_is_refused(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    path = tmp_path / "a.safetensors"
    make_artifact().save(path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="altered"):
        Artifact.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, make_artifact: MakeArtifact, value: float
) -> None:
    bad = {"direction": np.array([0.0, value], np.float32)}
    with pytest.raises(ArtifactError, match="'direction' holds NaN or infinite"):
        make_artifact(bad)
    path = tmp_path / "a.safetensors"
    content = safetensors.numpy.save(bad, {"guard": make_artifact().meta.canonical_json()})
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        Artifact.load(path)


def test_a_value_too_large_for_float32_is_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ArtifactError, match="infinite"):
        make_artifact({"w": np.array([1e300])})


def test_an_oversized_file_is_refused(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    make_artifact().save(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(ArtifactError, match="larger than"):
        Artifact.load(path)


def test_an_oversized_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    size = module.MAX_HEADER_BYTES + 1
    path.write_bytes(size.to_bytes(8, "little") + b"{" * size)
    with pytest.raises(ArtifactError, match="header of"):
        Artifact.load(path)
    with pytest.raises(ArtifactError, match="shorten"):
        Artifact(meta(settings={"x": "y" * size}), {})


def test_a_pickle_or_checkpoint_by_another_name_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("data.pkl", b"x")
    for content in (pickle.dumps({"w": [1.0]}), checkpoint.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="pickle"):
            Artifact.load(path)


def test_a_header_size_that_starts_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for low_byte in (0x80, 0x50):
        for length in range(256):
            Artifact(meta(description="x" * length), {}).save(path)
            if path.read_bytes()[0] == low_byte:
                break
        assert path.read_bytes()[0] == low_byte
        Artifact.load(path)


def test_a_deeply_nested_header_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"a":' * 100_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="damaged header"):
        Artifact.load(path)


def test_other_safetensors_files_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.ones(2, "f4")}))
    with pytest.raises(ArtifactError, match="no guard"):
        Artifact.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 4}, "schema version 4, this release reads 1 to 3"),
        ({"schema_version": 2}, "has schema version 1, not 2"),
        ({"method": ""}, "'method'"),
        ({"concept": "\x1b[31mred"}, "control characters"),
        ({"surprise": 1}, "'surprise'"),
        ({"created": "yesterday"}, "'created'"),
    ],
)
def test_metadata_that_does_not_hold_is_named(
    tmp_path: Path, make_artifact: MakeArtifact, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.safetensors"
    artifact = make_artifact()
    text = json.dumps(json.loads(artifact.meta.canonical_json()) | change)
    path.write_bytes(safetensors.numpy.save(artifact.tensors, {"guard": text}))
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(path)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 0.0], np.float32)
    text = Artifact(meta(), {"w": values}).meta.canonical_json()
    halves = {"F16": values.astype("<f2"), "BF16": (values.view("<u4") >> 16).astype("<u2")}
    for dtype, stored in halves.items():
        path = tmp_path / dtype
        spec = {"dtype": dtype, "shape": [3], "data_offsets": [0, 6]}
        about = {"guard": text, "guard_sha256": hashlib.sha256(text.encode()).hexdigest()}
        header = json.dumps({"__metadata__": about, "w": spec}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + stored.tobytes())
        loaded = Artifact.load(path).tensors["w"]
        np.testing.assert_array_equal(loaded, values, strict=True)


def test_integers_are_refused(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    with pytest.raises(ArtifactError, match="int64"):
        make_artifact({"w": np.array([1])})
    path = tmp_path / "a.safetensors"
    text = make_artifact().meta.canonical_json()
    path.write_bytes(safetensors.numpy.save({"w": np.array([1])}, {"guard": text}))
    with pytest.raises(ArtifactError, match="I64"):
        Artifact.load(path)


def test_nan_in_settings_is_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises((ArtifactError, ValidationError)):
        make_artifact(settings={"threshold": float("nan")})


@pytest.mark.parametrize("name", ["missing.safetensors", ".", "a\0b"])
def test_a_path_that_is_no_file_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path / name)


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a file"):
        Artifact.load(tmp_path / "pipe")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    make_artifact().save(path)
    before = path.read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        make_artifact(description="new").save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_saved_file_can_be_read_by_others_as_the_umask_says(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    (tmp_path / "plain").touch()
    make_artifact().save(tmp_path / "a")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a")}
    assert len(modes) == 1


def test_another_model_is_refused(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    artifact.require_model("f" * 64, served="tiny")
    with pytest.raises(FingerprintError, match=r"fitted on 'tiny'.*not on 'big'"):
        artifact.require_model("0" * 64, served="big")


PARENT = {
    "digest": "d" * 64,
    "model": {"name": "m", "architecture": "a", "fingerprint": "g", "layers": 1, "width": 1},
    "settings": {"threshold": 0.25},
}


def test_an_artifact_names_its_parent(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    artifact = make_artifact(schema_version=2, parent=PARENT)
    artifact.save(tmp_path / "a.safetensors")
    loaded = Artifact.load(tmp_path / "a.safetensors")
    assert loaded.digest == artifact.digest != make_artifact().digest
    assert loaded.meta.parent and loaded.meta.parent.settings == {"threshold": 0.25}
    assert loaded.meta.as_json()["parent"]["digest"] == "d" * 64


def test_a_parent_needs_its_schema_version(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ValidationError, match="and a parent has schema version 2, not 1"):
        make_artifact(parent=PARENT)


@pytest.mark.parametrize("more", [{}, {"parent": PARENT}])
def test_a_setting_that_earlier_releases_would_pass_over_is_kept_from_them(
    make_artifact: MakeArtifact, more: dict[str, Any]
) -> None:
    settings = {"tokens": "image"}
    assert make_artifact(schema_version=3, settings=settings, **more).meta.schema_version == 3
    for earlier in (1, 2):
        with pytest.raises(ValidationError, match="has schema version 3"):
            make_artifact(schema_version=earlier, settings=settings, **more)


def test_artifacts_without_a_parent_are_spelled_as_ever(make_artifact: MakeArtifact) -> None:
    # earlier releases read them, and their digests stay
    spelled = json.loads(make_artifact().meta.canonical_json())
    assert spelled["schema_version"] == 1 and "parent" not in spelled


def test_the_guards_of_earlier_releases_still_load() -> None:
    old = Artifact.load(Path(__file__).parents[2] / "examples/harry-potter/steer.safetensors")
    assert old.digest.startswith("ec3235f1cac94127") and old.meta.schema_version == 1


def test_a_model_that_is_not_fitted_is_told_what_to_do(make_artifact: MakeArtifact) -> None:
    with pytest.raises(FingerprintError, match="not on 'big' .*: do this instead$"):
        make_artifact().require_model("0" * 64, served="big", remedy="do this instead")
