"""A conversation as all chat APIs bring it: turns of texts, of images that clients upload, of calls
of tools and of what came of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import Field

from guard.errors import RequestError
from server.errors import InvalidParameter
from server.wire.strict_json import parse_object

_DATA_URL = re.compile(r"data:([^,;]{0,127})((?:;[^,;]{0,127}){0,8}),", re.IGNORECASE)
"""RFC 2397, section 3: the media type, and the parameters with `;base64` as the last one."""
DataUrl = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^\s*[Dd][Aa][Tt][Aa]:[^,]*;\s*[Bb][Aa][Ss][Ee]64\s*,"}),
]
"""A text that `ImageUpload.of_url` reads, and no other way to name an image."""
_HINT = 'send a data URL with base64 ("data:image/png;base64,...")'
_LONGEST_HEAD = 2048
"""Characters of a data URL before its comma, at most."""


@dataclass(frozen=True, slots=True, repr=False)
class ImageUpload:
    """An image of a body, not decoded yet: `data` is base64, `media_type` what the client calls it.

    `param` is its place in the body. `is_exact`: the file must be of that type, as Anthropic's API
    asks; OpenAI's clients call most files JPEG, and there the bytes decide.
    """

    data: str
    media_type: str
    param: str
    is_exact: bool = False

    @classmethod
    def of_url(cls, url: str, param: str) -> ImageUpload:
        """The image in a data URL. No other URL is ever fetched, and no file is opened.

        Raises InvalidParameter.
        """
        if not (url := url.strip()):
            raise InvalidParameter(f"'{param}' is empty; {_HINT}.", param=param)
        head = _DATA_URL.match(url, 0, _LONGEST_HEAD)
        if head is None:
            scheme = re.match(r"[a-z][a-z0-9+.-]{0,20}:", url, re.IGNORECASE)
            what = f"is no data URL but {scheme[0].lower()}..." if scheme else "is no data URL"
            if scheme and scheme[0].lower() == "data:":
                what = "is a data URL without a comma behind its media type"
            raise InvalidParameter(
                f"'{param}' {what}: this server fetches no URLs and opens no files; {_HINT}.",
                param=param,
            )
        parameters = head[2].lower().split(";")
        if parameters[-1].strip() != "base64":
            raise InvalidParameter(
                f"The data URL in '{param}' is not encoded as base64; {_HINT}.", param=param
            )
        data = url[head.end() :]
        if "%" in data:  # a URL may spell + / and = so
            data = unquote(data, errors="strict")
        return cls(data, head[1].strip().lower(), param)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant has made. `arguments` is a JSON object, or the text that a model
    has written in place of one."""

    id: str
    name: str
    arguments: dict[str, Any] | str

    @classmethod
    def of_text(cls, call_id: str, name: str, arguments: str) -> ToolCall:
        """The call with arguments as JSON text, which may be wrong: a model has written it."""
        try:
            value = parse_object(arguments.encode()) if arguments.strip() else {}
        except RequestError:
            return cls(call_id, name, arguments)
        return cls(call_id, name, value)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its texts and images in order. `role` is that of chat templates.

    `calls` are of the assistant, as is `reasoning`, what it has thought before its answer. A turn
    of the role `tool` is what came of the call `call_id`. `name` is whose message it is.
    """

    role: str
    parts: tuple[str | ImageUpload, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    @property
    def images(self) -> list[ImageUpload]:
        return [part for part in self.parts if isinstance(part, ImageUpload)]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def characters(self) -> int:
        """The length of all its strings but images."""
        whose = [self.role, self.name, self.call_id, self.reasoning]
        calls = [[call.id, call.name, call.arguments] for call in self.calls]
        return characters_of([*self.texts, *whose, *calls])


def characters_of(value: Any) -> int:
    """The length of all strings of a JSON value, its keys included; some for each other member."""
    count, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
        count += 4  # quotes and a comma, or a number
    return count


def as_parts(kind: str, content: Any) -> Any:
    """A text as the list of the one part that it stands for, of the type `kind`."""
    return [{"type": kind, "text": content}] if isinstance(content, str) else content


def role_of(role: str) -> str:
    """The role as chat templates call it; `developer` is OpenAI's newer `system`."""
    return "system" if role == "developer" else role


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """The turns, those of one role behind each other as one; each result of a tool by itself."""
    together: list[Turn] = []
    for turn in turns:
        last = together[-1] if together else None
        if last is not None and last.role == turn.role != "tool":
            reasoning = "\n".join(filter(None, [last.reasoning, turn.reasoning]))
            together[-1] = replace(
                last,
                parts=last.parts + turn.parts,
                calls=last.calls + turn.calls,
                reasoning=reasoning or None,
            )
        else:
            together.append(turn)
    return together
