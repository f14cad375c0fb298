"""Folders and processes that go with the command that made them, however that command ends."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

#: What marks the processes of a command: each one that it starts inherits it.
VARIABLE = "CELERY_LEDGER_SCRATCH"
_REAPER = Path(__file__).with_name("reaper.py")
#: Seconds that the reaper is waited for.
_SECONDS = 90.0


class Scratch:
    """New folders, and a process that removes them when this one is gone. A context manager.

    The reaper leads a session of its own: neither a Ctrl-C in the terminal nor a signal to the
    command's group reaches it.

    Args:
        prefix: what the folders' names begin with.
        places: where each folder is made; `None` for the system's temporary directory.
    """

    def __init__(self, prefix: str, places: Sequence[Path | None] = (None,)) -> None:
        self.mark = f"{prefix}{secrets.token_hex(4)}"
        # Named first, made after the reaper has begun: no moment is left in which nobody removes
        # them.
        self.folders = [Path(place or tempfile.gettempdir()).absolute() / self.mark
                        for place in places]  # fmt: skip
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_REAPER), VARIABLE, self.mark,
             *map(str, self.folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )  # fmt: skip
        for folder in self.folders:
            folder.mkdir(mode=0o700)

    @property
    def variables(self) -> dict[str, str]:
        """What is added to the environment of each process that shall go too."""
        return {VARIABLE: self.mark}

    def close(self) -> None:
        """Let all of it go now, and wait until it is gone."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        if self._reaper.stdin is not None:
            with suppress(OSError):
                self._reaper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._reaper.wait(_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
