"""A standby by Postgres's own streaming replication, to be promoted when its primary is gone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2

from tests.stepping import ShiftedPostgres
from worker.stack.postgres import PostgresServer
from worker.stack.server import write_private

#: Seconds for each step of a replication.
PATIENCE = 30.0
#: Nobody who reads holds up what is to be replayed.
_OPTIONS = {"max_standby_streaming_delay": "0"}


class Standby(ShiftedPostgres):
    """A copy of a running primary, which streams from it until it is promoted.

    Args:
        primary: the server to copy; its password is the copy's too.
        data, options: as of `PostgresServer`.
        source: the address to stream from, if it is not the primary's own: that of a proxy.
    """

    def __init__(
        self,
        primary: PostgresServer,
        data: Path,
        *,
        options: Mapping[str, str] | None = None,
        source: str | None = None,
    ) -> None:
        address = urlsplit(source or primary.url)
        self._source = (
            f"host=127.0.0.1 port={address.port} user=postgres password={primary.password}"
            " application_name=standby"
        )
        super().__init__(
            data,
            options={
                **primary.options,
                **_OPTIONS,
                "primary_conninfo": self._source,
                **(options or {}),
            },
        )
        self.data.mkdir(mode=0o700)
        write_private(self.data / "password", primary.password)

    def _make_cluster(self, found: Any) -> None:
        draft = self.data / "cluster.new"
        copy = str(found.postgres.with_name("pg_basebackup"))
        self._run([copy, "-D", str(draft), "-d", self._source, "-X", "stream", "-c", "fast"])
        (draft / "standby.signal").touch()
        draft.rename(self._cluster)

    def copy(self) -> None:
        """Copy the primary already, by a thread of its own: `start` has to be the main one's."""
        self._prepare()

    def promote(self) -> None:
        """Replay what it has received and take writes from now on."""
        # Without waiting in that session: its snapshot might hold up what is still to be replayed.
        ask(self.url, "SELECT pg_promote(false)")
        until = time.monotonic() + PATIENCE
        while self._is_standby():
            assert time.monotonic() < until, "the standby does not take writes"
            time.sleep(0.02)

    def _is_standby(self) -> bool:
        try:
            return bool(ask(self.url, "SELECT pg_is_in_recovery()")[0][0])
        except psycopg2.OperationalError:  # what is replayed has ended this look
            return True


def ask(url: str, statement: str) -> list[Any]:
    """The rows of one statement, outside of a transaction."""
    connection = psycopg2.connect(url, connect_timeout=5)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def await_replay(primary: PostgresServer, standby: Standby) -> None:
    """Wait until the standby has replayed what the primary has written by now."""
    ((position,),) = ask(primary.url, "SELECT pg_current_wal_lsn()")
    until = time.monotonic() + PATIENCE
    while not ask(standby.url, f"SELECT pg_last_wal_replay_lsn() >= '{position}'")[0][0]:
        assert time.monotonic() < until, "the standby does not follow"
        time.sleep(0.02)
