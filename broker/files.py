"""A file's bytes, without waiting for anybody: what an operator writes may turn into anything.

Opening a FIFO would wait for a writer for ever, and reading a device has no end. What is opened is
looked at, as a look at the path could be of another.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST = 4 << 20
"""Bytes: a key set or a configuration may be long, a whole disk is a mistake."""


def bytes_of(path: Path, most: int = MOST) -> bytes:
    """What a regular file holds. Raises ValueError, whose text says why and names no content."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("is no regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                raw = file.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise ValueError(f"cannot be read ({exc.strerror})") from None
    if len(raw) > most:
        raise ValueError(f"is longer than {most} bytes")
    return raw
