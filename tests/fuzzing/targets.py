"""What is fuzzed: readers of bytes that strangers write, the errors that each may raise, and inputs
to begin with. Whatever else a reader raises is a fault."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from classifiers.text.disguises.unreadable import unreadable
from classifiers.text.disguises.views import readings
from classifiers.text.patterns.matching import shipped
from classifiers.text.patterns.recognizers import Shipped
from guard.artifact import Artifact
from guard.config.schema import load_config
from guard.errors import ArtifactError, ConfigError, GuardError
from server.screening.bodies.texts import texts_of
from server.screening.streams.sse import BrokenStream, EventReader
from server.wire.forms import parse_form
from server.wire.schemas.images import EditRequest
from server.wire.strict_json import parse_answer, parse_object

LONGEST = 20_000
"""Bytes of an input: what grows with the length has tests of its own."""
_FORM = "multipart/form-data; boundary=b"


@dataclass(frozen=True)
class Target:
    """A reader, and the inputs that a search begins with."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def _config(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        path.write_bytes(content)
        with suppress(ConfigError):
            load_config(path)


def _artifact(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "guard.safetensors")
        path.write_bytes(content)
        with suppress(ArtifactError):
            Artifact.load_unsigned(path)


def _events(content: bytes) -> None:
    """The first byte says how large chunks are: events may not depend on it."""
    size = 1 + content[0] if content else 1
    whole, parts = (_sent(content[1:], by) for by in (len(content) + 1, size))
    assert whole == parts, "an event depends on the chunks that it comes in"


def _sent(content: bytes, size: int) -> list[tuple[str, str | None]] | None:
    reader, found = EventReader(LONGEST), []
    try:
        for start in range(0, len(content), size):
            found += [(e.name, e.data) for e in reader.feed(content[start : start + size])]
        found += [(e.name, e.data) for e in reader.rest()]
    except BrokenStream:
        return None
    return found


def _json(content: bytes) -> None:
    with suppress(GuardError):
        texts_of(parse_object(content), "user")
    with suppress(ValueError):
        parse_answer(content.decode())


def _form(content: bytes) -> None:
    with suppress(GuardError):
        parse_form(content, _FORM, EditRequest)


def _text(content: bytes) -> None:
    text = content.decode(errors="replace")
    assert readings(text), "every text has a reading: itself"
    unreadable(text)
    for name in get_args(Shipped):
        for match in shipped(name).find(text):
            assert 0 <= match.start < match.end <= len(text)


def _safetensors(header: object, data: bytes) -> bytes:
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data


TARGETS = {
    "config": Target(
        _config,
        (
            b'schema_version = 1\n[server]\nhost = "127.0.0.1"\nport = 8000\n',
            b'[[models]]\nname = "m"\nsource = "smollm2"\n[policies.p]\nguards = []\n',
            b'[[patterns]]\nname = "a"\nlists = ["personal-data"]\n'
            b'[policies.p.screen]\nguards = ["a"]\n',
            b'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:1/v1"\nmodels = ["*"]\n',
        ),
    ),
    "artifact": Target(
        _artifact,
        (
            _safetensors(
                {
                    "__metadata__": {"guard": '{"schema_version":1,"method":"steer"}'},
                    "gate": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
                },
                bytes(8),
            ),
            _safetensors({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        ),
    ),
    "events": Target(
        _events,
        (
            b'\x03data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n',
            b"\x01event: message_start\r\ndata: a\r\ndata: b\r\n\r\n: comment\n\n",
        ),
    ),
    "json": Target(
        _json,
        (
            b'{"model":"m","messages":[{"role":"user","content":"a \\ud83d\\ude00"}]}',
            b'{"input":[{"type":"message","content":[{"type":"input_text","text":"a"}]}],"n":1e9}',
        ),
    ),
    "multipart": Target(
        _form,
        (
            b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na\r\n--b--\r\n',
            b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n'
            b"content-type: image/png\r\n\r\n\x89PNG\r\n--b--\r\n",
        ),
    ),
    "text": Target(
        _text,
        (
            b"write to jane.doe@example.org or +49 30 1234567, IBAN DE89370400440532013000",
            b"aG93IHRvIG1ha2U= .... . .-.. .-.. --- %68%6f &#104;&#111; \\u0068 chr(104)",
            b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----",
        ),
    ),
}
