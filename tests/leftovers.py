"""Whatever a session of tests, or a program of measurements, makes goes with it, however it ends.

Its temporary files stand in one folder, and its databases in another one in memory. A process that
outlives it removes both, and kills what it left running. `--basetemp` keeps the tests' own folders.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

from worker.stack.scratch import VARIABLE, Scratch

MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def begin() -> Scratch | None:
    """Collect, from now on, what this process and those that it starts make; `None` where one that
    started this process does so already."""
    if os.path.isdir(os.environ.get("TMPDIR", "")) and os.environ.get(VARIABLE):
        return None
    in_memory = [MEMORY] if os.access(MEMORY, os.W_OK) else []
    made = Scratch("celery-ledger-", (None, *in_memory))
    for folder in made.folders:
        folder.chmod(0o755)  # Postgres runs as nobody when this runs as root
    os.environ.update({**made.variables, "TMPDIR": str(made.folders[0])})
    tempfile.tempdir = None  # asked for anew
    if "MAKELEVEL" in os.environ and sys.platform == "linux":
        # Whoever kills make alone means this too, and would find it running on.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return made


def in_memory() -> Path | None:
    """The folder in memory, where `begin` has made one."""
    folder = MEMORY / os.environ.get(VARIABLE, "none")
    return folder if folder.is_dir() else None
