"""The Ed25519 key that signs checkpoints of an audit log; what `cryptography` does is imported
late."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.audit.chain import encode
from guard.errors import GuardError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PREFIX = "ed25519:"


def new_key(path: Path) -> None:
    """Write a new private key, PEM of PKCS #8, that its owner alone may read. Raises GuardError."""
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except OSError as error:
        raise GuardError(f"audit key {path} cannot be written: {error.strerror}") from error


class Signer:
    """Signs lines with the private key in a file that others may not read. Raises GuardError."""

    def __init__(self, path: Path) -> None:
        self._key = _read(path)
        self._secret = hashlib.sha256(b"audit journal " + self._key.private_bytes_raw()).digest()

    @property
    def public(self) -> str:
        """The public key: `ed25519:` and 64 hex digits."""
        return _PREFIX + self._key.public_key().public_bytes_raw().hex()

    def signed(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """`line` with a `signature` over everything before it."""
        return {**line, "signature": self._key.sign(encode(line)).hex()}

    def seal(self, data: bytes) -> bytes:
        """The HMAC-SHA-256 of data that nobody without the key may change, 32 bytes."""
        return hmac.digest(self._secret, data, "sha256")


def is_signed(line: Mapping[str, Any], public: str) -> bool:
    """Whether a line has the signature of the private key of `public`. Raises GuardError."""
    _require()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.removeprefix(_PREFIX)))
    except ValueError as error:
        raise GuardError(
            "the public key should be ed25519: and 64 hex digits, as `guard audit key` prints it"
        ) from error
    rest = {name: value for name, value in line.items() if name != "signature"}
    try:
        key.verify(bytes.fromhex(line["signature"]), encode(rest))
    except (InvalidSignature, ValueError, TypeError, KeyError):
        return False
    return True


def _read(path: Path) -> Ed25519PrivateKey:
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(2**16)
    except OSError as error:
        raise GuardError(
            f"audit key {path} cannot be read: {error.strerror}; `guard audit key --new {path}` "
            "makes one"
        ) from error
    if mode & 0o077:
        raise GuardError(f"audit key {path} may be read by others: chmod 600 {path}")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise GuardError(f"audit key {path} is no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise GuardError(f"audit key {path} is of another kind than Ed25519")
    return key


def _require() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise GuardError("signing needs cryptography: pip install 'inference-guard[audit]'") from (
            error
        )
