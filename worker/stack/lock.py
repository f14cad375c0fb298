"""A lock file that one living holder has; the kernel frees it when the holder is gone."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from worker.errors import StackError


def take(path: Path, *, refusal: str, seconds: float = 0.0) -> int:
    """Take the lock, waiting so many seconds at most; the file descriptor that holds it.

    Whoever inherits the descriptor holds the lock too, until the last of them is gone.

    Raises:
        StackError: somebody else has it, with `refusal` as the message.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise StackError(refusal) from None
            time.sleep(0.02)  # flock has no timeout of its own
        else:
            return descriptor


def is_held(path: Path) -> bool:
    """Whether somebody has the lock now."""
    try:
        os.close(take(path, refusal=""))
    except FileNotFoundError:
        return False
    except StackError:
        return True
    return False
