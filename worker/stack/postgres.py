"""The embedded Postgres: the wheel's own programs, on 127.0.0.1, in one folder."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from worker.errors import StackError
from worker.stack import binaries, identity
from worker.stack.binaries import PostgresBinaries
from worker.stack.process import Identity, Process, launched
from worker.stack.server import Server

#: Messages that this module reads must be in English, whatever the user's language.
_ENGLISH = {"LC_ALL": "C"}


class PostgresServer(Server):
    """A Postgres of our own. It keeps what it acknowledged: fsync and synchronous_commit stay on.

    In `data`: `cluster` (Postgres's own), `password`, `lock`, `postgres.log`.

    Args:
        data: the folder; made when missing.
        port: the preferred port.
        options: Postgres settings by name, such as {"max_connections": "50"}.
        database: the database that is made at the first start: lower case letters, digits, "_".
    """

    name = "Postgres"
    stop_signal = signal.SIGINT  # a "fast" shutdown: running transactions are rolled back

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        database: str = "ledger",
    ) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", database):
            raise StackError(
                f"{database!r} is no name for a database; expected lower case letters and digits."
            )
        super().__init__(data, port=port, options=options)
        self.database = database
        self._cluster = self.data / "cluster"
        self._identity: Identity = "self"
        self._binaries: PostgresBinaries | None = None

    @property
    def url(self) -> str:
        """The address of its database, with the password."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """The address of another database on this server, with the password."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and start it on the same data and port.

        "fast" ends every session cleanly; "immediate" is a crash that the start recovers from.

        Raises:
            StackError: it did not come back.
        """
        if mode == "immediate" and self._process is not None:
            self._process.stop(signal.SIGQUIT, self.stop_seconds)
        self.stop()
        self.start()

    def _prepare(self) -> None:
        assert self.password  # made before the folder is given away
        self._binaries = binaries.find_postgres()
        self._refuse_another_version(self._binaries)
        self._identity = identity.choose(self._binaries.postgres, self.data)
        if not self._cluster.exists():
            self._make_cluster(self._binaries)
        # We hold the lock, so nobody runs: the pid in there may be anybody's by now, and
        # Postgres would take that process for a server.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _refuse_another_version(self, found: PostgresBinaries) -> None:
        made_by = self._cluster / "PG_VERSION"
        if not made_by.exists():
            return
        theirs, ours = made_by.read_text().strip(), binaries.major_version(found.postgres)
        if theirs != str(ours):
            raise StackError(
                f"The data in {self.data} were made by Postgres {theirs}, but {found.postgres} is"
                f" Postgres {ours}; use Postgres {theirs}, or another data directory."
            )

    def _make_cluster(self, found: PostgresBinaries) -> None:
        """Make the cluster and its database aside, so that there is a whole one or none."""
        draft = self.data / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)  # of a start that was cut short
        initdb = [str(found.initdb), "-D", str(draft), "-U", "postgres", "--encoding=UTF8"]
        password = ["--auth=scram-sha-256", f"--pwfile={self.data / 'password'}"]
        self._run([*initdb, *password, "--locale=C"])
        # Single-user mode needs neither a port nor a client.
        single = [str(found.postgres), "--single", "-D", str(draft), "postgres"]
        self._run(single, f"CREATE DATABASE {self.database};\n")
        draft.rename(self._cluster)

    def _run(self, argv: list[str], text: str = "") -> None:
        done = subprocess.run(
            launched(argv, identity=self._identity, death_signal=signal.SIGTERM),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )
        if done.returncode != 0:
            tail = "".join(f"\n  {line}" for line in done.stdout.splitlines()[-12:])
            raise StackError(f"{Path(argv[0]).name} failed while it made {self.data}:{tail}")

    def _build(self, port: int) -> Process:
        assert self._binaries is not None
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # its path has a limit of 107 bytes; ours has none
            **self.options,
        }
        argv = [str(self._binaries.postgres), "-D", str(self._cluster), "-p", str(port)]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        return Process(
            argv,
            log=self.data / "postgres.log",
            environment=_ENGLISH,
            cwd="/",
            identity=self._identity,
            death_signal=self.stop_signal,
        )

    def _answers(self, process: Process, port: int) -> bool:
        # What pg_ctl waits for: Postgres itself writes there when it begins to take connections,
        # after recovery. The pid is a proof that it is ours and not another on that port.
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        if len(lines) < 8 or lines[0].strip() != str(process.pid) or lines[7].strip() != "ready":
            return False
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True
