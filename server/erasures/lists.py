"""Names on suppression lists: what is asked for, and the files of the lists that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore
from guard.certificate import Asked, Change
from guard.config.schema import Config, GuardConfig
from guard.errors import DataError
from guard.fitting.suppression.lists import Entry, entries_of, shrunk
from server.erasures.errors import Conflict
from server.erasures.record import Record
from server.erasures.store import FITTED, LIST
from server.errors import InvalidParameter
from server.wire.schemas.erasures import ErasureRequest

ALONE = (
    "a list is in force or not, and so are its entries: leave out 'list' for guards that can be "
    "tried in shadow"
)


class ListChanged(Exception):
    """The list has changed since an entry was fitted on it."""


def require_no_list(body: ErasureRequest) -> None:
    """Raise InvalidParameter for what makes no sense without a list."""
    if body.entry is not None:
        raise InvalidParameter(
            "'entry' is what a list calls the name: give the 'list' too, or leave it out.",
            param="entry",
        )


def list_and_entry(
    body: ErasureRequest, asked: Asked, config: Config, known: Mapping[str, Sequence[str]]
) -> Asked:
    """What a request asks for that has a list; `known` are the entries of the model's lists.

    Raises InvalidParameter, and Conflict for an entry that is there."""
    assert body.list is not None
    guard = next((each for each in config.guards if each.name == body.list), None)
    if guard is None or guard.name not in known:
        here = ", ".join(known) or "none"
        raise InvalidParameter(
            f"No suppression list {body.list[:80]!r} is in use on {body.model!r}: there is {here} "
            "(guards of the method 'suppression-list').",
            param="list",
        )
    _require_changeable(guard)
    having = [name for name, policy in config.policies.items() if guard.name in policy.guards]
    for index, name in enumerate(body.policies):
        if name not in having:
            raise InvalidParameter(
                f"The policy {name[:80]!r} does not use the list {guard.name!r}: leave 'policies' "
                "out, a list is in force in all policies that have it.",
                param=f"policies[{index}]",
            )
    if not having:
        raise InvalidParameter(
            f"No policy uses the list {guard.name!r}: have the operator put it into one.",
            param="list",
        )
    if body.documents:
        raise InvalidParameter(
            "A list knows names, and nothing else of a person: leave 'documents' out, put further "
            "names into 'aliases', or leave out 'list' for guards of all that belongs to it.",
            param="documents",
        )
    if body.start == "shadow":
        raise InvalidParameter(f"Invalid 'start': {ALONE}.", param="start")
    try:
        entry = Entry.of(asked.name, body.entry or "").id
    except DataError as error:
        raise InvalidParameter(f"Invalid 'entry': {error.message}.", param="entry") from None
    if entry in known[guard.name]:
        raise Conflict(already(guard.name, entry), param="entry")
    facts = {"policies": tuple(having), "start": "in force", "list": guard.name, "entry": entry}
    return asked.model_copy(update=facts)


def require_other_entries(asked: Asked, waiting: Sequence[Record]) -> None:
    """Raise Conflict where one that is waiting makes the entry that is asked for."""
    for record in waiting if asked.list is not None else ():
        if (record.asked.list, record.asked.entry) == (asked.list, asked.entry):
            raise Conflict(
                f"The erasure {record.id} is about to make the entry {asked.entry!r}.",
                param="entry",
            )


def already(name: str, entry: str) -> str:
    """An entry that is there."""
    return (
        f"The list {name!r} has an entry {entry!r} already: give another 'entry' where this is "
        "somebody else, or have the operator take that one off the list."
    )


def file_of(config: Config, name: str) -> Path:
    """The file of a list. Raises Conflict where it is not configured any more."""
    for guard in config.guards:
        if guard.name == name:
            return guard.artifact
    raise Conflict(f"There is no list {name!r} here any more.")


def configured(config: Config, name: str) -> bool:
    """Whether there is a guard of this name."""
    return any(guard.name == name for guard in config.guards)


def gone(record: Record, config: Config, known: Mapping[str, Sequence[str]]) -> str:
    """Why an entry in force is no longer on its list, empty where it is; `known` are the entries
    of the model's lists."""
    listed = record.listed
    if record.state != "in force" or listed is None:
        return ""
    if not configured(config, listed.list):
        return "its list is not configured any more"
    there = known.get(listed.list)
    missing = there is not None and listed.entry not in there
    return "its entry was taken off the list" if missing else ""


def put(path: Path, folder: Path, change: Change) -> Artifact | None:
    """Put the list that was fitted in the `folder` of an erasure in the place of the one before,
    which is given back; None where that was done before.

    Raises ListChanged where the list is another one by now, and ArtifactError."""
    now = Artifact.load(path)
    if now.digest == change.after:
        return None
    if now.digest != change.before:
        raise ListChanged
    fitted = folder / FITTED / LIST
    Artifact.load(fitted).save(path)
    fitted.unlink()
    return now


def take_off(path: Path, entry: str) -> tuple[Artifact, Change] | None:
    """Take an entry off the list in a file: the list before, and the change; None where it is not
    on it. Raises ArtifactError."""
    before = Artifact.load(path)
    if entry not in entries_of(before):
        return None
    after = shrunk(before, [entry], empty=True)
    after.save(path)
    return before, Change(before=before.digest, after=after.digest)


def _require_changeable(guard: GuardConfig) -> None:
    if guard.shadow:
        raise InvalidParameter(
            f"The list {guard.name!r} is in shadow: have the operator take shadow = true out of "
            "its [[guards]] first.",
            param="list",
        )
    if guard.artifact.is_relative_to(ArtifactStore().folder):
        raise InvalidParameter(
            f"The list {guard.name!r} is configured by its digest, and cannot change: have the "
            "operator configure it as a file.",
            param="list",
        )
