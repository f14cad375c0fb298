"""SIGTERM ends every command as process 1 of a container too."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ledger import given
from tests.processes import LoggedProcess, Processes

#: Beginning of a command that makes the rest of it process 1 of a namespace of its own.
_FIRST = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM

First = Callable[..., LoggedProcess]


def _can() -> bool:
    if shutil.which(_FIRST[0]) is None:
        return False
    return subprocess.run([*_FIRST, "true"], capture_output=True).returncode == 0


@pytest.fixture
def first(processes: Processes) -> First:
    """Start `worker …` as process 1."""
    if not _can():
        pytest.skip("needs unshare, and the right to make a namespace")

    def start(*arguments: str, **variables: str) -> LoggedProcess:
        return processes([*_FIRST, sys.executable, "-m", "worker", *arguments], variables)

    return start


def end(process: LoggedProcess) -> int:
    """Send SIGTERM to process 1, as a container's engine does; its exit code."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (pid,) = given.until(lambda: children.read_text().split())
    os.kill(int(pid), signal.SIGTERM)
    return process.wait()


def test_a_migration_that_waits_ends(first: First) -> None:
    process = first("migrate", "--wait=600", DATABASE_URL="postgresql://u:x@127.0.0.1:1/x")
    process.wait_for_line("waiting, 0 s of 600 s.")
    assert end(process) == _ENDED_BY_SIGTERM
    assert "Traceback" not in process.output


def test_a_producer_that_waits_for_its_job_ends(first: First) -> None:
    process = first("enqueue", "probe.echo", "--wait")
    process.wait_for_line("accepting without a check")
    assert end(process) == _ENDED_BY_SIGTERM
    assert "Traceback" not in process.output


def test_a_worker_and_a_keeper_end_as_ever(first: First) -> None:
    worker = first("run", "-c", "2")
    keeper = first("keeper")
    worker.wait_for_line("ready.", 60)
    keeper.wait_for_line("Leading as")
    assert end(worker) == 0
    assert end(keeper) == 0
