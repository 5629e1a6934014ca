"""What is compared: the bare model, the model under a policy, baselines. All answer alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from guard.data.benchmarks.questions import Question
from guard.errors import DataError
from guard.evaluation.mllmu.asking import Asked
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard
from steering.prompt import Prompt

BARE = "bare"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `fired` says whether any guard fired.

    `scores` are those of a classification's options, in the order of their letters: log p of the
    letter as the first token, or of the text, the mean over its tokens and the end behind them.
    """

    text: str
    tokens: tuple[int, ...]
    fired: bool = False
    scores: tuple[float, ...] = ()

    def choice(self, question: Question) -> str:
        """The letter of the likeliest option."""
        letters = list(question.options)
        return letters[max(range(len(letters)), key=self.scores.__getitem__)]


@dataclass(frozen=True)
class Contestant:
    """A model that answers: `chat` with the guards `guards` of `bank` on every row, after the
    system message `system`, if any."""

    name: str
    chat: TransformersChat
    bank: HiddenBank | None = None
    guards: Sequence[RowGuard] = ()
    system: str = ""
    steering: Sequence[SteerGuard] = ()
    """The steering guards among them, of whose directions baselines are made."""
    notes: Mapping[str, object] = field(default_factory=dict)
    """How it was made, for the report."""

    def replies(self, asked: Sequence[Asked], progress: Stages) -> list[Reply]:
        """The greedy answers to all questions, in their order."""
        scored = [i for i, item in enumerate(asked) if item.is_scored]
        replies = dict(zip(scored, self._scored([asked[i] for i in scored], progress), strict=True))
        for length in sorted({item.max_tokens for item in asked if not item.is_scored}):
            places = [i for i, item in enumerate(asked) if item.max_tokens == length]
            letters = [self._option_tokens(asked[i].question) for i in places]
            prompts = [self._prompt(asked[i]) for i in places]
            answers = self.chat.answer(
                prompts,
                max_tokens=length,
                what=f"{self.name}: answers of at most {length} tokens",
                progress=progress,
                bank=self.bank,
                guards=self.guards,
                scored=letters,
            )
            for i, answer in zip(places, answers, strict=True):
                replies[i] = Reply(answer.text, answer.tokens, answer.fired, answer.scores)
        return [replies[i] for i in range(len(asked))]

    def _scored(self, asked: Sequence[Asked], progress: Stages) -> list[Reply]:
        """The replies where the options' texts are scored: the text of the likeliest one."""
        if not asked:
            return []
        prompts = [self._prompt(item) for item in asked]
        options = [[*item.question.options.values()] for item in asked]
        try:
            found = self.chat.likelihoods(
                prompts,
                options,
                what=f"{self.name}: options",
                progress=progress,
                bank=self.bank,
                guards=self.guards,
            )
        except ValueError as error:
            raise DataError(f"the options of a question: {error}") from error
        replies = []
        for texts, losses in zip(options, found, strict=True):
            best = min(range(len(texts)), key=losses.values.__getitem__)
            scores = tuple(-loss for loss in losses.values)
            replies.append(Reply(texts[best], (), losses.fired, scores))
        return replies

    def _prompt(self, item: Asked) -> Prompt:
        images = [] if item.image is None else [item.image]
        try:
            return self.chat.prompt(item.text, images, system=self.system)
        except ValueError as error:
            portrait = item.question.portrait
            where = portrait.where if portrait else item.question.person
            raise DataError(f"{where}: {error}") from error

    def _option_tokens(self, question: Question) -> tuple[int, ...]:
        """The first token of each option's letter as an answer. Raises DataError where the model's
        tokenizer writes two of them alike."""
        tokens = tuple(self.chat.ids(letter)[0] for letter in question.options)
        if len(set(tokens)) < len(tokens):
            raise DataError(f"the tokenizer of {self.chat.name} writes two option letters alike")
        return tokens


class BareReplies:
    """Answers of the bare model, kept in a file from run to run.

    Rows are keyed by what the answer depends on: the weights, the text, the pixels, the length.
    """

    def __init__(self, bare: Contestant, folder: Path) -> None:
        self._bare = bare
        self._model = bare.chat.fitted_model.fingerprint
        self._path = folder / f"bare-{self._model[:12]}.mllmu.jsonl"
        self._known = self._read()

    def replies(self, asked: Sequence[Asked], progress: Stages) -> list[Reply]:
        """As `Contestant.replies`; only new questions are run. Raises DataError where the file
        cannot be written."""
        keys = [self._key(item) for item in asked]
        new = {key: item for key, item in zip(keys, asked, strict=True) if key not in self._known}
        if new:
            replies = self._bare.replies([*new.values()], progress)
            self._known |= zip(new, replies, strict=True)
            self._write({key: self._known[key] for key in new})
        return [self._known[key] for key in keys]

    def _key(self, item: Asked) -> str:
        options = item.question.options
        keys = [
            self._model,
            item.text,
            item.max_tokens,
            *(options.items() if item.is_scored else options),
        ]
        digest = hashlib.sha256(json.dumps(keys).encode())
        if item.image is not None:
            digest.update(repr(item.image.shape).encode() + item.image.tobytes())
        return digest.hexdigest()

    def _read(self) -> dict[str, Reply]:
        known = {}
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                row = json.loads(line)
                reply = Reply(row["text"], tuple(row["tokens"]), False, tuple(row["scores"]))
                known[str(row["key"])] = reply
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was interrupted: it is asked again
        return known

    def _write(self, replies: Mapping[str, Reply]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                # a line that was cut off must not swallow the first new one
                file.write("\n")
                for key, reply in replies.items():
                    file.write(json.dumps({"key": key} | asdict(reply)) + "\n")
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror}") from error
