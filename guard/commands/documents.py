"""Configuration files that commands write: comments and order stay, and a file that would not hold
is not replaced."""

from __future__ import annotations

from pathlib import Path

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.exceptions import TOMLKitError

from guard.config.schema import load_config
from guard.errors import ConfigError, DataError


def read_document(config: Path) -> TOMLDocument:
    """A configuration with its comments. Raises DataError for a file that is no TOML."""
    try:
        return tomlkit.parse(config.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{config}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, TOMLKitError) as error:
        raise DataError(f"{config}: is no TOML: {error}") from error


def replace_document(config: Path, document: TOMLDocument) -> None:
    """Put the document in place of the file. Raises ConfigError where it is no valid configuration
    there; the file is as it was then."""
    fresh = config.with_name(f".{config.name}.new")
    try:
        fresh.write_text(tomlkit.dumps(document), "utf-8")
        load_config(fresh)
        fresh.chmod(config.stat().st_mode & 0o777)
        fresh.replace(config)
    except ConfigError as error:
        lines = [f"{config} would not hold with it, and is as it was", *error.problems]
        raise ConfigError(lines) from error
    except OSError as error:
        raise DataError(f"{config}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
