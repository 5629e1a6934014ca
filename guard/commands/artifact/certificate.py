"""`guard certificate`: checks the certificate of an erasure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from guard.certificate import check_artifacts, find_in_audit, read_certificate
from guard.errors import DataError

app = typer.Typer(
    add_completion=False, help="Check certificates of erasures.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Check certificates of erasures."""


@app.command(
    epilog="Example: guard certificate verify certificate.json --audit audit.jsonl "
    "--artifacts erasures/er-0123456789ab/fitted"
)
def verify(
    certificate: Annotated[Path, typer.Argument(help="The certificate, JSON.")],
    audit: Annotated[
        Path | None, typer.Option(help="The audit log of the server that has issued it.")
    ] = None,
    artifacts: Annotated[
        Path | None, typer.Option(help="The folder with the artifacts that it names.")
    ] = None,
) -> None:
    """Check that a certificate is whole, that the audit log has it, and its artifacts.

    One line for each check; exit status 1 where one fails. Without --audit nothing shows that the
    certificate is the one that was issued.
    """
    found = read_certificate(certificate)
    print(f"certificate: whole, {found.digest}")
    print(f"  {found.erasure}: {found.asked.name!r} on {found.asked.model}, {found.state}")
    checks: list[Callable[[], str]] = []
    if audit is not None:
        checks.append(lambda: "audit log: has it, line {}, {}".format(*find_in_audit(found, audit)))
    if artifacts is not None:
        checks.append(lambda: f"artifacts: all {check_artifacts(found, artifacts)} as certified")
    faults = []
    for check in checks:
        try:
            print(check())
        except DataError as error:
            faults.append(error.message)
    if faults:
        raise DataError("; ".join(faults))
