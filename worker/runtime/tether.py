"""How an isolated process knows that its worker asked it to end, and not one of its own jobs."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """What `WORKER_ISOLATED` says of the worker that started this process.

    Attributes:
        pid: the worker's. Not `getppid`, which is somebody else's when the worker has died already.
        pod: what the two have in common. Not a host and a pid, which need not be unique: in a
            container every worker may have pid 1, and its restart has its forerunner's name.
        pipe: file descriptor at which the worker says that it asks this process to end; `None` if
            there is none.
    """

    pid: int
    pod: str
    pipe: int | None = None

    @classmethod
    def read(cls, isolated: str) -> Origin:
        """The origin in the value of the setting."""
        pid, pod, *pipe = isolated.split(":")
        return cls(int(pid), pod, int(pipe[0]) if pipe else None)

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.pid, self.pod, self.pipe) if part is not None)

    def has_asked(self, seconds: float) -> bool:
        """Whether that worker has asked this process to end, or is gone.

        A job may send its parent a signal, which looks like the operator's. An operator who means
        the worker ends it as well: then it asks, and a signal to a whole group may reach this
        process first.

        Args:
            seconds: how long to wait for its word.
        """
        if self.pipe is None or os.getppid() != self.pid:
            return True
        try:
            poll = select.poll()
            poll.register(self.pipe, select.POLLIN)
            return bool(poll.poll(seconds * 1000)) or os.getppid() != self.pid
        except OSError:
            return True


class Tether:
    """The worker's end of that pipe; the kernel closes it when the worker dies."""

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe()

    def ask(self) -> None:
        """Tell the process that it is asked to end."""
        with suppress(OSError):  # it has ended
            os.write(self._ours, b".")

    def close(self) -> None:
        """The process has ended."""
        for end in (self.theirs, self._ours):
            with suppress(OSError):
                os.close(end)
