"""The embedded Redis: Valkey's or Redis's own program, on 127.0.0.1, in one folder."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from worker.stack import binaries
from worker.stack.process import Process
from worker.stack.server import Server, prepare_folder, write_private


class RedisServer(Server):
    """A Redis of our own, with a password and an append-only file.

    In `data`: `store` (Redis's own), `password`, `lock`, `redis.conf`, `redis.log`.
    Options are Redis settings by name, such as {"appendfsync": "always"}.
    """

    name = "Redis"
    stop_signal = signal.SIGTERM

    _program: Path | None = None

    @property
    def url(self) -> str:
        """The address of its database 0, with the password."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """The address of one of its databases, 0 to 15, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def restart(self) -> None:
        """Stop it and start it on the same data and port.

        Raises:
            StackError: it did not come back.
        """
        self.stop()
        self.start()

    def _prepare(self) -> None:
        self._program = binaries.find_redis()
        prepare_folder(self.data / "store")

    def _build(self, port: int) -> Process:
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": _quoted(str(self.data / "store")),
            "requirepass": self.password,
            "appendonly": "yes",
            "save": '""',  # the append-only file is enough
            "maxmemory-policy": "noeviction",  # a full Redis refuses; it never forgets a doorbell
            **self.options,
        }
        configuration = self.data / "redis.conf"
        write_private(configuration, "".join(f"{key} {settings[key]}\n" for key in settings))
        return Process(
            [str(self._program), str(configuration)],
            log=self.data / "redis.log",
            cwd="/",
            death_signal=self.stop_signal,
        )

    def _answers(self, process: Process, port: int) -> bool:
        # Only ours knows this password, so another server on that port is no answer.
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = connection.makefile("rb")
                return answer.readline() == b"+OK\r\n" and answer.readline() == b"+PONG\r\n"
        except OSError:
            return False


def _quoted(text: str) -> str:
    """The text as one word of a Redis configuration file."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
