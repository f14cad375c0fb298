"""One child process: started with a log, tied to its parent's life, stopped for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from worker.errors import StackError

#: Whom a process runs as; `child.py` says what each means.
Identity = Literal["self", "nobody", "namespace"]

_LAUNCHER = Path(__file__).with_name("child.py")


def launched(argv: Sequence[str], *, identity: Identity, death_signal: signal.Signals) -> list[str]:
    """The command that runs `argv` by way of `child.py`."""
    tied = threading.current_thread() is threading.main_thread()
    parent = os.getpid() if tied else 0
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    return [*launcher, str(parent), str(int(death_signal)), identity, *argv]


class Process:
    """A program that can be started again after it ended.

    It leads a session of its own, so that a Ctrl-C in the terminal does not reach it, and gets
    `death_signal` when this process dies, however that dies (Linux). The kernel ties that to the
    *thread* that started it, so only what the main thread starts is tied.

    Args:
        argv: the program, an absolute path, and its arguments.
        log: where its output is appended.
        environment: variables added to this process's own.
        cwd: its working directory; this process's own by default.
        identity: whom it runs as.
        death_signal: what it gets when this process dies.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        identity: Identity = "self",
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self._environment = dict(environment or {})
        self._cwd = cwd
        self._identity: Identity = identity
        self._death_signal = death_signal
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, *, keep_open: Sequence[int] = ()) -> None:
        """Start it. It inherits the file descriptors `keep_open`.

        Raises:
            StackError: it is running already, or its log cannot be written.
        """
        if self.alive:
            raise StackError(f"{self.argv[0]} is running already, as process {self.pid}.")
        try:
            with self.log.open("ab") as output:
                self._popen = subprocess.Popen(
                    launched(self.argv, identity=self._identity, death_signal=self._death_signal),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    # Handed down whole and unread: only settings.py reads it.
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                    pass_fds=keep_open,
                )
        except OSError as exc:
            raise StackError(f"{self.argv[0]} could not be started: {exc}.") from exc

    @property
    def pid(self) -> int | None:
        """The pid of the running process; `None` when it does not run."""
        return self._popen.pid if self._popen is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; `None` while it runs or before its start."""
        return None if self._popen is None else self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal; nothing when it does not run."""
        if self._popen is not None:
            self._popen.send_signal(number)  # knows a reaped child: never hits a reused pid

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        if self._popen is None:
            return True
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, number: signal.Signals, seconds: float) -> bool:
        """Ask it to end by a signal, and kill its whole group if it has not after so many seconds.

        Returns whether it ended by itself.
        """
        self.send(number)
        if self.wait(seconds):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL the process and its group, and wait until it is gone."""
        if self._popen is not None and self.alive:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of its log, indented, for an error message; empty when there are none."""
        try:
            text = self.log.read_bytes()[-16_384:].decode(errors="replace")
        except OSError:
            return ""
        return "".join(f"\n  {line}" for line in text.splitlines()[-lines:])
