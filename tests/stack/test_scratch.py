"""Nothing is left behind by a command, however it is ended: no folder, memory or process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.leftovers import MEMORY
from tests.processes import LoggedProcess, Processes
from worker.stack.scratch import VARIABLE

#: A command with a folder, a child that hears no signal, and a child of that in another session.
_COMMAND = """
import os, pathlib, signal, subprocess, sys, time
from worker.stack.scratch import Scratch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup runs the tests
deaf = ("import signal, time, subprocess, sys\\n"
        "for n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)\\n"
        "if len(sys.argv) > 1: subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " start_new_session=True)\\n"
        "time.sleep(600)")
with Scratch("scratch-") as made:
    (made.folders[0] / "file").write_text("x")
    subprocess.Popen([sys.executable, "-c", deaf, deaf], env={**os.environ, **made.variables})
    print("began", made.mark, flush=True)
    time.sleep(600)
"""


def belongs(mark: str) -> list[str]:
    """The processes of the command with this mark that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marks = (entry / "environ").read_bytes().split(b"\0")
            line = (entry / "cmdline").read_bytes().decode().split("\0")
            is_dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            served = "postgres" in line[0] and any(mark in word for word in line)
            if not is_dead and (f"{VARIABLE}={mark}".encode() in marks or served):
                found.append(" ".join(line))
    return found


def until(gone: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not gone():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)  # neither folders nor processes of others have an event to wait on


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which a command collects its own leftovers, in a folder to look into."""
    (tmp_path / "tmp").mkdir(mode=0o755)
    (tmp_path / "stands").mkdir()
    tmp_path.chmod(0o755)
    return {VARIABLE: "", "TMPDIR": str(tmp_path / "tmp"), "STANDS": str(tmp_path / "stands")}


def end(command: LoggedProcess, *numbers: signal.Signals, group: bool) -> None:
    for number in numbers:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(command.pid, number)


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGINT],
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGQUIT],
        [signal.SIGKILL],
        [signal.SIGSEGV],
    ],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
def test_a_scratch_goes_however_its_command_ends(
    processes: Processes, elsewhere: dict[str, str], numbers: list[signal.Signals]
) -> None:
    command = processes([sys.executable, "-c", _COMMAND], elsewhere)
    mark = command.wait_for_line("began").split()[1]
    folder = Path(elsewhere["TMPDIR"], mark)
    assert (folder / "file").exists()
    until(lambda: len(belongs(mark)) == 2)

    end(command, *numbers, group=True)

    until(lambda: not belongs(mark) and not folder.exists())


@pytest.mark.parametrize(
    ("numbers", "group", "by_make"),
    [
        ([signal.SIGINT, signal.SIGINT], True, False),
        ([signal.SIGKILL], False, False),
        ([signal.SIGKILL], False, True),
    ],
    ids=["ctrl-c twice", "kill", "kill make alone"],
)
def test_an_interrupted_session_of_tests_leaves_nothing(
    processes: Processes,
    elsewhere: dict[str, str],
    numbers: list[signal.Signals],
    group: bool,
    by_make: bool,
) -> None:
    # Given a session of tests in two processes, each with servers and a child
    file = str(Path(__file__).with_name("interrupted.py"))
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", file]
    if by_make:
        makefile = Path(elsewhere["STANDS"]).with_name("Makefile")
        makefile.write_text(f"session:\n\t@{' '.join(argv)}\n")
        argv = ["make", "-f", str(makefile)]
    session = processes(argv, elsewhere)
    stands = Path(elsewhere["STANDS"])
    until(lambda: len(list(stands.iterdir())) == 2, 60)
    (mark,) = {path.read_text() for path in stands.iterdir()}
    assert belongs(mark) and os.listdir(elsewhere["TMPDIR"])

    # When it is interrupted
    end(session, *numbers, group=group)

    # Then nothing of it is left, neither in files nor in memory nor as a process
    until(lambda: not belongs(mark))
    until(lambda: not os.listdir(elsewhere["TMPDIR"]) and not (MEMORY / mark).exists())


def test_a_killed_demo_leaves_nothing(processes: Processes, elsewhere: dict[str, str]) -> None:
    demo = processes([sys.executable, "-m", "worker", "demo"], elsewhere)
    demo.wait_for_line("Starting Redis", 60)
    (folder,) = Path(elsewhere["TMPDIR"]).glob("celery-ledger-demo-*")

    demo.send(signal.SIGKILL)

    until(lambda: not belongs(folder.name))
    until(lambda: os.listdir(elsewhere["TMPDIR"]) == [])
