"""Erasing what is personal to a tenant from an audit log, whose chain holds all the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from guard.audit.chain import encode, erased, is_linked, is_of, parse
from guard.audit.files import locked, read_lines
from guard.errors import DataError


def erase(path: Path, tenant: str) -> int:
    """Erase the tenant's personal fields in a file, and return in how many lines there were any.

    A server may write to the file meanwhile: it waits, and goes on in the new one. Raises DataError
    for a file that is packed, cannot be written, or has lines of the tenant that are not chained.
    """
    if path.suffix == ".gz":
        raise DataError(f"{path}: is packed: unpack it first, with gzip -d")
    try:
        file = os.open(path, os.O_RDWR)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        with locked(file):
            if not os.path.samestat(os.fstat(file), os.stat(path)):
                raise DataError(f"{path}: was moved at this moment: try again")
            return _rewrite(path, tenant)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        os.close(file)


def _rewrite(path: Path, tenant: str) -> int:
    count = 0
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as target:
            for number, line in enumerate(read_lines(path), 1):
                entry = parse(line)
                if (
                    entry is not None
                    and not is_linked(entry)
                    and is_of(entry.get("tenant"), tenant)
                ):
                    raise DataError(
                        f"{path}:{number}: was written without audit_key: nothing commits to its "
                        "fields, so delete the file when its time is over"
                    )
                cleared = erased(entry, tenant) if entry is not None and is_linked(entry) else None
                count += cleared is not None
                target.write(line if cleared is None else encode(cleared))
            target.flush()
            os.fsync(target.fileno())
        if count:
            shutil.copystat(path, name)
            state = path.stat()
            os.chown(name, state.st_uid, state.st_gid)
            os.replace(name, path)
        return count
    finally:
        Path(name).unlink(missing_ok=True)
