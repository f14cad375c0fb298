"""What the embedded Postgres and Redis have in common: data, lock, port, readiness, end."""

from __future__ import annotations

import os
import secrets
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from worker.errors import StackError
from worker.stack import lock, ports
from worker.stack.process import Process

#: Seconds until a server must answer. Recovery after a crash takes the most of it.
_READY_SECONDS = 60.0
#: Seconds that an earlier server gets to let go of its data, after a crash of its parent.
_LET_GO_SECONDS = 20.0


class Server(ABC):
    """A server on 127.0.0.1 with its data in one folder.

    Args:
        data: the folder; made when missing, for its owner only.
        port: the preferred port; when it is taken, or `None`, a free one is chosen.
        options: the server's own settings, by the server's names.
    """

    name: ClassVar[str]
    #: The signal that ends it cleanly, also when this process dies.
    stop_signal: ClassVar[signal.Signals]
    #: Seconds that it gets for a clean end.
    stop_seconds: ClassVar[float] = 30.0

    def __init__(
        self, data: Path, *, port: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.data = data.absolute()
        self.options = dict(options or {})
        self._port = port
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and wait until it answers. Call it in the main thread: see `Process`.

        Raises:
            StackError: it runs already, its data are in use, or it did not answer in time.
        """
        if self.alive:
            raise StackError(f"{self.name} is running already, on port {self.port}.")
        prepare_folder(self.data)
        held = self._take_data()
        try:
            self._prepare()
            self._start_on_a_port(held)
        finally:
            os.close(held)  # from here on only the server and its children hold it

    def stop(self) -> None:
        """End it cleanly and wait until it has ended; nothing when it does not run."""
        if self._process is not None:
            self._process.stop(self.stop_signal, self.stop_seconds)

    def kill(self) -> None:
        """End it as a crash does, by SIGKILL."""
        if self._process is not None:
            self._process.kill()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.alive

    @property
    def pid(self) -> int | None:
        """The pid of the running server; `None` when it does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; `None` while it runs or before its start."""
        return self._process.exit_code if self._process is not None else None

    @property
    def port(self) -> int:
        """The port it listens on, once it was started; a restart keeps it.

        Raises:
            StackError: it was never started.
        """
        if self._process is None or self._port is None:
            raise StackError(f"{self.name} was not started yet, so it has no port.")
        return self._port

    @property
    def password(self) -> str:
        """The password that it asks for; made at first use."""
        path = self.data / "password"
        if not path.exists():
            prepare_folder(self.data)
            write_private(path, secrets.token_urlsafe(24))
        return path.read_text()

    @abstractmethod
    def _prepare(self) -> None:
        """Whatever must be there before the start; the data are locked meanwhile."""

    @abstractmethod
    def _build(self, port: int) -> Process:
        """The process, not yet started, that will listen on this port."""

    @abstractmethod
    def _answers(self, process: Process, port: int) -> bool:
        """Whether it takes connections now."""

    def _take_data(self) -> int:
        refusal = (
            f"{self.name}'s data in {self.data} are in use by a server that still runs;"
            " stop that one first."
        )
        return lock.take(self.data / "lock", refusal=refusal, seconds=_LET_GO_SECONDS)

    def _start_on_a_port(self, held: int) -> None:
        for _ in range(5):  # the port may be taken between the choice and the use
            port = self._port if self._process is not None else None
            port = port or ports.choose(self._port)  # once started it never moves
            process = self._build(port)
            already_logged = process.log.stat().st_size if process.log.exists() else 0
            process.start(keep_open=[held])
            if self._wait_until_ready(process, port):
                self._process, self._port = process, port
                return
            process.kill()
            if b"Address already in use" not in process.log.read_bytes()[already_logged:]:
                break
        raise StackError(f"{self.name} did not start; its log ends with:{process.log_tail()}")

    def _wait_until_ready(self, process: Process, port: int) -> bool:
        deadline = time.monotonic() + _READY_SECONDS
        try:
            while process.alive and time.monotonic() < deadline:
                if self._answers(process, port):
                    return True
                process.wait(0.02)
        except BaseException:
            process.kill()
            raise
        return False


def prepare_folder(folder: Path) -> None:
    """Make the folder, for its owner only.

    Raises:
        StackError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as exc:
        raise StackError(f"The data directory {folder} cannot be used: {exc}.") from exc


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
