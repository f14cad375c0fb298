"""Kill the parent of a server, and see that the server goes too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from worker.stack import lock

_PARENT = """
import importlib, pathlib, sys
_, module, name, data = sys.argv
server = getattr(importlib.import_module(module), name)(pathlib.Path(data))
server.start()
print("started", flush=True)
sys.stdin.read()
"""


def assert_dies_with_its_parent(module: str, name: str, data: Path) -> None:
    """Start the server in a process of its own, SIGKILL that, and wait until the server is gone."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, module, name, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        assert lock.is_held(data / "lock")
        parent.kill()

    # The server and every child of it hold the lock as long as they live.
    lock.take(data / "lock", refusal="the server outlived its parent", seconds=15)
