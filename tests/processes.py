"""Subprocesses of a test: their output goes to files, and none of them outlives the test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


class LoggedProcess:
    """A subprocess in a process group of its own, whose whole output is in a file."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.argv = list(argv)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                self.argv,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its pid, which is its group's too."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; `None` while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """What it has written so far, to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, timeout: float = 30.0, *, times: int = 1) -> str:
        """The line that contains `text`, once it was written (`times` times: the last of these).

        Raises:
            AssertionError: it was not within `timeout` seconds, or the process ended without it.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self.exit_code is not None
            complete, _, _ = self.output.rpartition("\n")
            found = [line for line in complete.splitlines() if text in line]
            if len(found) >= times:
                return found[times - 1]
            assert not ended, f"{self.argv} ended with {self.exit_code} without {text!r}"
            assert time.monotonic() < deadline, f"no {text!r} from {self.argv} in {timeout} s"
            time.sleep(0.02)  # a file has no event to wait on

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code, once it has ended.

        Raises:
            AssertionError: it did not end within `timeout` seconds.
        """
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.argv} did not end in {timeout} s") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def terminate(self, timeout: float = 30.0) -> int:
        """Ask it to end by SIGTERM; its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL it and its group, as a crash of the whole would."""
        # The group may have members left when its leader has ended.
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Processes:
    """Starts a test's subprocesses, and ends them all with it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._started: list[LoggedProcess] = []

    def __call__(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> LoggedProcess:
        """Start one; `environment` adds to the test's own, which names its servers."""
        log = self._folder / f"process-{len(self._started) + 1}.log"
        process = LoggedProcess(argv, {**self._environment, **(environment or {})}, log)
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        """Kill whatever still runs."""
        for process in self._started:
            process.kill()

    def report(self) -> str:
        """Every process's output, for a failed test."""
        return "\n".join(
            f"--- {' '.join(process.argv)} (exit code {process.exit_code})\n{process.output}"
            for process in self._started
        )
