"""Prove that Python finds this package and the tasks of `WORKER_TASKS`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

import worker
from worker.errors import LedgerError
from worker.settings import Settings

#: Seconds that importing the tasks may take.
_PATIENCE: Final = 60.0
#: Separates what a task module prints from what this one has to say.
_MARK: Final = "\0"
_CHILD: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from worker.cli.imports import report
report()
"""


def tasks_fault() -> str | None:
    """Why a worker could not import its tasks; `None` when it could.

    They are imported as a worker would, in a process of their own: user code runs at import, may
    hang, and may end the process.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"The modules of WORKER_TASKS did not finish importing in {_PATIENCE:.0f} seconds."
    _, mark, fault = child.stdout.decode(errors="replace").rpartition(_MARK)
    if not mark:
        return (
            "The modules of WORKER_TASKS ended the process that imported them, with exit code"
            f" {child.returncode}; keep what runs the program under `if __name__ == '__main__':`."
        )
    return " ".join(fault.split()) or None


def report() -> None:
    """In the child: import the tasks, and print why that failed or nothing, after a mark."""
    from worker.runtime.app import create_app  # Celery takes half a second to import

    fault = ""
    try:
        create_app(Settings.load())
    except LedgerError as exc:
        fault = str(exc)
    sys.stdout.write(_MARK + fault)


def shadow_fault(folder: Path) -> str | None:
    """Which module of somebody else's stands in the way of this package; `None` for none.

    Args:
        folder: where `python` would be started: its modules come before the installed ones.
    """
    own = Path(__file__).resolve().parents[1]
    origins = [getattr(worker, "__file__", None)]
    spec = PathFinder.find_spec("worker", [str(folder)])
    origins += [spec.origin] if spec is not None else []  # no origin: a folder without __init__
    for origin in origins:
        if origin is not None and Path(origin).resolve().parent != own:
            return (
                f"{origin} shadows the package `worker` of celery-ledger wherever Python starts in"
                " its folder; rename it."
            )
    return None
