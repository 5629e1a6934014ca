"""A guard on disk: one safetensors file, whose metadata describes the guard and its model.

Nothing in it is executed, and everything is checked: size, format, hashes, dtypes, finite values.
The file holds its own digest, over settings, model and tensors alike. The same content gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from safetensors.numpy import save as to_safetensors

from guard.errors import ArtifactError, FingerprintError

SCHEMA_VERSION: Final = 3
"""The newest version; an artifact has the oldest one that can say what it means (`version_of`)."""
_NARROWING = frozenset({"tokens"})
"""Settings that releases of earlier versions would pass over, and act where they must not."""
MAX_FILE_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 2**20

_METADATA_KEY = "guard"
_DIGEST_KEY = "guard_sha256"
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_FIT_AGAIN = "fit the guard again or fetch the file again"


def _printable(text: str) -> str:
    # These strings end up in terminals and logs.
    if not text.replace("\n", " ").isprintable():
        raise ValueError("must not hold control characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FittedModel(_Frozen):
    """The model a guard was fitted on; a guard fits every model with the same `fingerprint`."""

    name: Name
    architecture: Name
    fingerprint: Name
    layers: int = Field(ge=1)
    width: int = Field(ge=1)


class Parent(_Frozen):
    """The artifact that another one was made from, with the same tensors, for another model.

    `digest` is that artifact's, `model` the one it is for, and `settings` holds its values of the
    settings that differ.
    """

    digest: Sha256
    model: FittedModel
    settings: dict[str, JsonValue] = {}


def version_of(settings: Mapping[str, object], parent: object | None) -> Literal[1, 2, 3]:
    """The schema version of an artifact: 3 with a setting that earlier releases would pass over, 2
    with a parent, else 1."""
    if not _NARROWING.isdisjoint(settings):
        return 3
    return 1 if parent is None else 2


class ArtifactMeta(_Frozen):
    """The metadata of an artifact.

    `settings` are those of the method (layers, strength, threshold ...), `calibration` the figures
    they were chosen by. Artifact computes `tensors_sha256` if it is empty. `schema_version` must
    be that of `version_of`.
    """

    schema_version: Literal[1, 2, 3] = 1
    method: Name
    concept: Name
    description: Text = ""
    created: date
    model: FittedModel
    seams: tuple[Name, ...]
    settings: dict[str, JsonValue] = {}
    calibration: dict[str, JsonValue] = {}
    parent: Parent | None = None
    tensors_sha256: Sha256 | Literal[""] = ""

    @model_validator(mode="after")
    def _has_the_version_of_its_fields(self) -> Self:
        needed = version_of(self.settings, self.parent)
        if self.schema_version != needed:
            raise ValueError(
                f"an artifact with these settings {'and a parent' if self.parent else 'alone'} has "
                f"schema version {needed}, not {self.schema_version}"
            )
        return self

    def as_json(self) -> dict[str, Any]:
        """All fields, JSON-ready; without `parent` where there is none, as in version 1."""
        absent = {"parent"} if self.parent is None else set()
        return self.model_dump(mode="json", exclude=absent)

    def canonical_json(self) -> str:
        """The one JSON spelling of this metadata: sorted keys, no spaces, no NaN."""
        return json.dumps(
            self.as_json(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """Metadata and tensors of one guard, checked on construction.

    `tensors` become float32, C-contiguous, and must be finite. Raises ArtifactError if they are
    not, or if `meta.tensors_sha256` is given and does not match them.
    """

    meta: ArtifactMeta
    tensors: dict[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        tensors = {name: _float32(name, values) for name, values in sorted(self.tensors.items())}
        sha256 = _hash(tensors)
        if self.meta.tensors_sha256 not in {"", sha256}:
            raise ArtifactError(
                f"the tensors were altered: their SHA-256 is {sha256[:12]}..., the metadata says "
                f"{self.meta.tensors_sha256[:12]}...: {_FIT_AGAIN}"
            )
        meta = self.meta.model_copy(update={"tensors_sha256": sha256})
        try:
            size = len(meta.canonical_json().encode())
        except ValueError as error:
            raise ArtifactError(f"metadata is not plain JSON: {error}") from error
        if size > MAX_HEADER_BYTES // 2:
            raise ArtifactError(
                f"metadata takes {size} bytes, more than {MAX_HEADER_BYTES // 2}: shorten it"
            )
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "meta", meta)

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over the metadata, which holds the hash of the tensors."""
        return hashlib.sha256(self.meta.canonical_json().encode()).hexdigest()

    @property
    def short_digest(self) -> str:
        """The first 12 digits of `digest`."""
        return self.digest[:12]

    def require_model(
        self, fingerprint: str, *, served: str, remedy: str = "fit it on that model"
    ) -> None:
        """Raise FingerprintError unless this artifact was fitted on the model of `fingerprint`, or
        bound to it since.

        `served` is the name of that model in the error message, which ends with the `remedy`.
        """
        fitted = self.meta.model
        if fingerprint != fitted.fingerprint:
            raise FingerprintError(
                f"guard for {self.meta.concept!r} was fitted on {fitted.name!r} "
                f"({fitted.fingerprint}), not on {served!r} ({fingerprint}): {remedy}"
            )

    def save(self, path: Path | str) -> None:
        """Write one safetensors file atomically. Raises ArtifactError."""
        target = Path(path)
        metadata = {_METADATA_KEY: self.meta.canonical_json(), _DIGEST_KEY: self.digest}
        content = _in_order(to_safetensors(self.tensors, metadata))
        try:
            _write_atomically(target, content)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path | str) -> Artifact:
        """Read and check an artifact. Raises ArtifactError naming the file and what is wrong."""
        return cls._load(Path(path), needs_digest=True)

    @classmethod
    def load_unsigned(cls, path: Path | str) -> Artifact:
        """As `load`, of a file that may hold no digest: nothing shows whether it was altered."""
        return cls._load(Path(path), needs_digest=False)

    @classmethod
    def _load(cls, path: Path, *, needs_digest: bool) -> Artifact:
        try:
            return cls._parse(_read(path), path, needs_digest)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, content: bytes, path: Path, needs_digest: bool) -> Artifact:
        header = _header(content)
        try:
            stored = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise ArtifactError(f"damaged safetensors file ({error}): {_FIT_AGAIN}") from error
        meta = _meta(header)
        artifact = cls(meta, {name: _decode(name, entry) for name, entry in stored})
        digest = header["__metadata__"].get(_DIGEST_KEY)
        if digest is None and needs_digest:
            raise ArtifactError(
                "holds no digest of its settings, so nothing shows whether they were altered: "
                f"fetch it again, or where you trust it run `guard artifacts sign {path}`"
            )
        if digest not in {None, artifact.digest}:
            raise ArtifactError(
                f"the settings or tensors were altered: their digest is {artifact.digest[:12]}..., "
                f"the file says {str(digest)[:12]!r}: {_FIT_AGAIN}"
            )
        return artifact


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            kind = "is not a file" if path.exists() else "does not exist"
            raise ArtifactError(f"{kind}: give the path of a .safetensors artifact")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ArtifactError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB: not an artifact")
    return content


def _header(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    if size > len(content) - 8 or content[8:9] != b"{":
        # Valid files may start with these bytes too, the low ones of the header's size.
        if content.startswith((b"\x80", b"PK")):
            raise ArtifactError("looks like a pickle or a PyTorch checkpoint, never loaded")
        raise ArtifactError(f"is truncated or not a safetensors file: {_FIT_AGAIN}")
    if size > MAX_HEADER_BYTES:
        raise ArtifactError(f"has a header of {size} bytes, more than {MAX_HEADER_BYTES}")
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"has a damaged header: {_FIT_AGAIN}") from error
    if not isinstance(header, dict):
        raise ArtifactError("has a header that is no JSON object: not a safetensors file")
    return header


def _meta(header: Mapping[str, Any]) -> ArtifactMeta:
    metadata = header.get("__metadata__")
    text = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtifactError("is a safetensors file, but no guard: it has no guard metadata")
    try:
        return ArtifactMeta.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        if field == "schema_version":
            raise ArtifactError(
                f"has schema version {first['input']!r}, this release reads 1 to {SCHEMA_VERSION}: "
                "use the release that fitted it, or fit it again"
            ) from error
        place = f"metadata field {field!r}" if field else "metadata"
        raise ArtifactError(f"{place} does not hold: {first['msg']}: {_FIT_AGAIN}") from error


def _decode(name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ArtifactError(
            f"tensor {name!r} has dtype {entry['dtype']}, not one of {', '.join(_DTYPES)}"
        )
    values: NDArray[Any] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32; numpy has no such dtype
        return (values.astype("<u4") << 16).view("<f4")
    return values


def _float32(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if not np.issubdtype(values.dtype, np.floating):
        raise ArtifactError(f"tensor {name!r} has dtype {values.dtype}, not a floating one")
    with np.errstate(over="ignore"):
        converted = np.array(values, dtype="<f4", order="C")
    if not np.isfinite(converted).all():
        raise ArtifactError(f"tensor {name!r} holds NaN or infinite values: {_FIT_AGAIN}")
    return converted


def _hash(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name, values in tensors.items():
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order, which the library leaves
    to chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _write_atomically(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
