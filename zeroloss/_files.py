"""Files that are whole or absent: a new file is complete on the disk before it replaces the old one."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from zeroloss.errors import RunError

PART = ".part"
"""The ending of a file's name while it is being written."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once the block ends without an error.

    Raises `RunError` where that cannot be written; `path` then stays as it was.
    """
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(part, "xb") as file:  # never through a link that is there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        with contextlib.suppress(OSError):  # not every system can be asked for a folder
            settle(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def require_free(*paths: Path) -> None:
    """Raise `RunError` where one of `paths` is there already."""
    for path in paths:
        if path.exists():
            raise RunError(f"{path} is there already; nothing was written. Choose another place with --out.")


def unwritable(path: Path, error: OSError) -> RunError:
    """The error to raise where `path` could not be written."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}. What had been written before is as it was."
    )


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of_bytes(parts: Iterable[bytes]) -> str:
    """A short fingerprint of bytes; it does not depend on how they are split into parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
