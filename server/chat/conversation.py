"""The state of a chat: what was said, under which policy, with which verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.errors import DataError


@dataclass(slots=True)
class Turn:
    """A question and its answer; `verdict` None where the server tells nothing of it."""

    question: str
    answer: str
    policy: str | None
    verdict: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Conversation:
    """One chat; `policy` None is the server's default."""

    model: str
    policy: str | None = None
    system: str = ""
    temperature: float = 0.0
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str, *, before: int | None = None) -> list[dict[str, str]]:
        """The messages of a request: the first `before` turns (None: all), then the question."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:before]:
            said.append({"role": "user", "content": turn.question})
            said.append({"role": "assistant", "content": turn.answer})
        return [*said, {"role": "user", "content": question}]

    def reset(self) -> None:
        """Forget what was said; policy and system prompt stay."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Write the chat as JSON into a new file. Raises DataError."""
        said = [
            {
                "question": turn.question,
                "answer": turn.answer,
                "policy": turn.policy,
                "guard": turn.verdict,
            }
            for turn in self.turns
        ]
        text = {"model": self.model, "system": self.system or None, "turns": said}
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(text, file, ensure_ascii=False, indent=2)
                file.write("\n")
        except FileExistsError:
            raise DataError(f"{path} is there already: name another file") from None
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from None
