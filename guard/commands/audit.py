"""`guard audit`: checks a chained audit log, exports it, and erases personal fields in it."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from guard.audit.erase import erase as erase_in
from guard.audit.export import Filter, entries, to_jsonl, to_parquet, to_syslog, utc
from guard.audit.journal import waiting
from guard.audit.signing import Signer, new_key
from guard.audit.verify import verify as verify_files
from guard.errors import DataError

app = typer.Typer(
    add_completion=False,
    help="Check an audit log, export it, erase personal fields in it.",
    no_args_is_help=True,
)
Files = Annotated[
    list[Path], typer.Argument(help="The log; rotated files before it, the oldest first.")
]


class Format(StrEnum):
    """What `export` makes."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    SYSLOG = "syslog"


@app.command(epilog="Example: guard audit key --new audit.pem")
def key(
    file: Annotated[Path, typer.Argument(help="The private key, which `audit_key` names.")],
    new: Annotated[bool, typer.Option("--new", help="Make the key.")] = False,
) -> None:
    """Print the public key, which is what others need to check the log."""
    if new:
        new_key(file)
    print(Signer(file).public)


@app.command(epilog="Example: guard audit verify audit.jsonl.1 audit.jsonl --key ed25519:0123...")
def verify(
    files: Files,
    key: Annotated[str, typer.Option(help="The public key, as `guard audit key` prints it.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A copy of a checkpoint kept elsewhere; else that beside the last file, if any."
        ),
    ] = None,
) -> None:
    """Find every line that was removed, altered, moved, doubled or put in; then exit status 1.

    What an honest log may have too, as the end of a process that was killed, is told as a note.
    """
    report = verify_files(files, key, checkpoint)
    for note in report.notes:
        print(f"note: {note}")
    for fault in report.faults:
        print(f"fault: {fault}")
    if report.faults:
        raise DataError(f"faults: {len(report.faults)}; {report.summary()}")
    print(f"whole: {report.summary()}")


@app.command(
    epilog="Example: guard audit export audit.jsonl --to parquet --output audit.parquet "
    "--since 2026-11-01 --outcome blocked"
)
def export(
    files: Files,
    to: Annotated[Format, typer.Option(help="The form.")] = Format.JSONL,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; jsonl goes to stdout without it.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of syslog: udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH."),
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this time on, ISO 8601, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Lines of this tenant and its teams.")] = None,
    policy: Annotated[str | None, typer.Option(help="Lines of this policy.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Lines with this outcome.")] = None,
) -> None:
    """Write the lines of a log as JSON lines or a Parquet file, or send them to a syslog server."""
    wanted = Filter(_time(since, "--since"), _time(until, "--until"), tenant, policy, outcome)
    if (to is Format.SYSLOG) != (address is not None):
        raise typer.BadParameter("--address is for --to syslog, which needs it")
    if to is Format.SYSLOG and output is not None:
        raise typer.BadParameter("--output is not for --to syslog")
    if to is Format.PARQUET and output is None:
        raise typer.BadParameter("--to parquet needs --output")
    if output is not None and any(_is_same(output, file) for file in files):
        raise typer.BadParameter(f"--output {output} is one of the files to read")
    lines = entries(files, wanted)
    if address is not None:
        count = to_syslog(lines, address)
    elif output is None:
        to_jsonl(lines, sys.stdout.buffer)
        return
    elif to is Format.PARQUET:
        count = to_parquet(lines, output)
    else:
        try:
            with output.open("wb") as target:
                count = to_jsonl(lines, target)
        except OSError as error:
            raise DataError(f"{output}: cannot be written: {error.strerror}") from error
    print(f"{count} lines to {address or output}")


@app.command(epilog="Example: guard audit erase audit.jsonl.1 audit.jsonl --tenant acme")
def erase(
    files: Files,
    tenant: Annotated[str, typer.Option(help="Whose fields: a tenant, key, team or person.")],
) -> None:
    """Erase the names and request ids of a tenant. The log stays whole; a server may run."""
    waits = []
    for file in files:
        print(f"{file}: erased in {erase_in(file, tenant)} lines")
        waits += waiting(file)
    if waits:
        raise DataError(
            f"{waits[0]}: has lines of a process that was killed, which whoever opens the log next "
            "writes: start the server, and erase again"
        )


def _time(text: str | None, option: str) -> datetime | None:
    try:
        return utc(text) if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(
            f"{option} {text!r} is no time: give one such as 2026-11-30 or 2026-11-30T12:00:00Z"
        ) from error


def _is_same(output: Path, file: Path) -> bool:
    return output.resolve() == file.resolve()
