"""Where a command's lines come from: a file, a pipe or stdin, with a progress bar for people."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Bytes from which on a file is worth a progress bar.
_LONG: Final = 1 << 20
_CHUNK: Final = 1 << 20


@contextmanager
def source(path: str, *, rewindable: bool) -> Iterator[int]:
    """A descriptor of `path` (`-` is stdin), at its beginning.

    Args:
        path: a file, a named pipe, or `-`.
        rewindable: copy what can be read only once to a temporary file.
    """
    descriptor = os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY)
    try:
        if not rewindable or _size(descriptor) is not None:
            yield descriptor
            return
        with tempfile.TemporaryFile() as copy:
            while chunk := os.read(descriptor, _CHUNK):
                copy.write(chunk)
            copy.flush()
            os.lseek(copy.fileno(), 0, os.SEEK_SET)
            yield copy.fileno()
    finally:
        os.close(descriptor)


@contextmanager
def progress(descriptor: int, *, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Takes sizes in bytes as they are read; shows them only on a terminal, for a long file."""
    size = _size(descriptor)
    if not wanted or not sys.stderr.isatty() or size is None or size < _LONG:
        yield lambda size: None
        return
    from rich.console import Console  # here: a pipeline pays for no import that it does not use
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=size)
        yield lambda size: bar.update(task, advance=size)


def _size(descriptor: int) -> int | None:
    status = os.fstat(descriptor)
    return status.st_size if stat.S_ISREG(status.st_mode) else None
