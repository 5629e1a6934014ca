"""One chat: lines of the user, each a question or a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from guard.config.checks import NO_POLICY
from guard.errors import GuardError
from server.chat.client import ChatClient, ChatError, End
from server.chat.conversation import Conversation, Turn
from server.chat.screen import Screen

MAX_LINE = 100_000
"""Characters of a question."""


class Quit(Exception):
    """The user wants to leave."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a word behind `/` does; `usage` is what stands behind it."""

    run: Callable[[Session, str], None]
    usage: str
    help: str


class Session:
    """Asks `client` what the user says, and shows what comes."""

    def __init__(self, client: ChatClient, conversation: Conversation, screen: Screen) -> None:
        self.client, self.conversation, self.screen = client, conversation, screen

    def run(self, lines: Iterable[str]) -> None:
        """Take lines until they end, or one says `/quit`."""
        for line in lines:
            try:
                self.take(line.strip())
            except Quit:
                return
            except ChatError as error:
                self.screen.error(error.message)
                if error.verdict is not None:
                    self.screen.verdict(error.verdict, "")
            except GuardError as error:
                self.screen.error(error.message)

    def take(self, line: str) -> None:
        """One line. Raises GuardError and Quit."""
        if len(line) > MAX_LINE:
            raise ChatError(f"a line has at most {MAX_LINE} characters; this one has {len(line)}")
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise ChatError(f"there is no command /{name[:40]}: /help names all")
        command.run(self, rest.strip())

    def _ask(self, question: str) -> None:
        said = self.conversation
        answer, end = self._show(said.messages(question), said.policy)
        if answer or end is not None:
            verdict = end.verdict if end else None
            said.turns.append(Turn(question, answer, said.policy, verdict))

    def _show(self, messages: list[dict[str, str]], policy: str | None) -> tuple[str, End | None]:
        """Show an answer as it comes: its text, and its end, None where the user has stopped it."""
        said, pieces = self.conversation, list[str]()
        end: End | None = None
        request = self.client.answer(said.model, messages, policy, temperature=said.temperature)
        try:
            with closing(request) as answer:
                for piece in answer:
                    if isinstance(piece, End):
                        end = piece
                    else:
                        pieces.append(piece)
                        self.screen.piece(piece)
        except KeyboardInterrupt:
            end = None
        finally:
            if pieces:
                self.screen.end()
        if end is None:
            self.screen.note("[stopped]")
        else:
            self.screen.verdict(end.verdict, end.reason)
        return "".join(pieces), end

    def bare(self, rest: str) -> None:
        """Show what the model says to the last question without guards."""
        _require_nothing(rest, "bare")
        turns = self.conversation.turns
        if not turns:
            raise ChatError("there is no answer yet to compare with")
        question, before = turns[-1].question, len(turns) - 1
        self._show(self.conversation.messages(question, before=before), NO_POLICY)

    def choose_policy(self, rest: str) -> None:
        """Take a policy, or say which there are."""
        known = self.client.policies()
        if not rest:
            current = self.conversation.policy or "the server's default"
            self.screen.note(f"policies: {', '.join(known)}; now: {current}")
        elif rest not in known:
            raise ChatError(f"there is no policy {rest[:80]!r}: there is {', '.join(known)}")
        else:
            self.conversation.policy = rest
            self.screen.note(f"policy: {rest}")

    def set_system(self, rest: str) -> None:
        """Set the system prompt, or take it away."""
        self.conversation.system = rest
        self.screen.note("system prompt: " + (rest or "none"))

    def reset(self, rest: str) -> None:
        _require_nothing(rest, "reset")
        self.conversation.reset()
        self.screen.note("the conversation begins anew")

    def save(self, rest: str) -> None:
        if not rest:
            raise ChatError("name a file: /save FILE")
        self.conversation.save(Path(rest).expanduser())
        self.screen.note(f"saved: {rest}")

    def show_help(self, rest: str) -> None:
        for name, command in COMMANDS.items():
            self.screen.note(f"{f'/{name} {command.usage}':<16} {command.help}")
        self.screen.note("Ctrl-C stops an answer, Ctrl-D leaves.")

    def quit(self, rest: str) -> None:
        raise Quit


def _require_nothing(rest: str, name: str) -> None:
    if rest:
        raise ChatError(f"/{name} stands alone")


COMMANDS: Mapping[str, Command] = {
    "policy": Command(
        Session.choose_policy, "[NAME]", "ask under this policy; say which there are"
    ),
    "bare": Command(Session.bare, "", "the answer to the last question without guards"),
    "system": Command(Session.set_system, "[TEXT]", "set the system prompt; none without a text"),
    "reset": Command(Session.reset, "", "forget what was said"),
    "save": Command(Session.save, "FILE", "write the conversation with its verdicts as JSON"),
    "help": Command(Session.show_help, "", "this list"),
    "quit": Command(Session.quit, "", "leave"),
}
