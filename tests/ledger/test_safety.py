"""A Postgres that may lose what it acknowledges is mended in the session, or refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests import servers
from tests.conftest import _migrate
from worker.client import Client
from worker.errors import LedgerUnavailable, NotDurable
from worker.ledger import session
from worker.ledger.database import Ledger
from worker.settings import Settings
from worker.stack.postgres import PostgresServer

#: With these a commit that is not synchronous stays in Postgres's memory for a long time.
LAZY = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
#: The last one is also heard by sessions that are open.
SCOPES = ["ROLE postgres", "DATABASE ledger", "SYSTEM"]


@contextmanager
def postgres(**options: str) -> Iterator[PostgresServer]:
    """A migrated Postgres with some settings, on the disk."""
    with servers.postgres() as server:
        _migrate(server.url)
        server.options = {**server.options, **options}
        server.restart()
        yield server


def ask(url: str, *statements: str) -> list[str]:
    """The first column of each statement's first row, by a session of somebody else's."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            answers = []
            for statement in statements:
                cursor.execute(statement)
                row = cursor.fetchone() if cursor.description else None
                answers.append(str(row[0]) if row else "")
            return answers
    finally:
        connection.close()


def crash(server: PostgresServer) -> None:
    """Kill every process of the server at once, and start it again."""
    assert server.pid is not None
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    for pid in (server.pid, *map(int, children)):
        os.kill(pid, signal.SIGSTOP)  # so that none notices the others' end
    for pid in (*map(int, children), server.pid):
        os.kill(pid, signal.SIGKILL)
    server.stop()
    server.start()


def test_what_was_accepted_survives_a_crash_of_a_server_that_commits_lazily(
    settings_for: Callable[..., Settings],
) -> None:
    # Given a server whose commits reach the disk by and by, by whatever scope it was told so
    ids: list[str] = []
    with (
        postgres(**LAZY) as server,
        Client(settings_for(database_url=server.url)) as old,
    ):
        ids.append(old.enqueue("probe.echo").id)  # a session that stays while the server is told
        for scope in SCOPES:
            ask(server.url, f"ALTER {scope} SET synchronous_commit = off")
            ask(server.url, "SELECT pg_reload_conf()")
            assert ask(server.url, "SHOW synchronous_commit") == ["off"]

            # When jobs are enqueued
            with Client(settings_for(database_url=server.url)) as client:
                for door in (client, old):
                    ids += [door.enqueue("probe.echo", [n]).id for n in range(50)]
            ask(server.url, f"ALTER {scope} RESET synchronous_commit")

        # and the server is killed with all of its processes
        ask(server.url, "SET synchronous_commit = off; CREATE TABLE ledger.theirs ()")
        crash(server)

        # Then each of them is there, but not what a stranger wrote at last
        with Client(settings_for(database_url=server.url)) as client:
            assert sum(client.counts(ids).values()) == 301
        assert ask(server.url, "SELECT to_regclass('ledger.theirs')") == ["None"]


def test_a_stronger_commit_stays(database_url: str, open_ledger: Callable[..., Ledger]) -> None:
    name = database_url.rpartition("/")[2]
    ask(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = remote_apply')

    assert open_ledger().execute("SHOW synchronous_commit")[0][0] == "remote_apply"


def test_behind_a_pooler_what_a_session_cannot_mend_is_refused(
    database_url: str, open_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given sessions that are others' too
    theirs = session._SET_BOUNDS.replace("pg_backend_pid()", "pg_backend_pid() + 1")
    monkeypatch.setattr(session, "_SET_BOUNDS", theirs)
    name = database_url.rpartition("/")[2]
    ask(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')

    with pytest.raises(NotDurable, match=r"= off: .*; set it to on by ALTER ROLE or "):
        open_ledger().execute("SELECT 1")

    ask(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = on')
    assert open_ledger().execute("SHOW synchronous_commit")[0][0] == "on"


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_reload_that_makes_a_server_unsafe_is_noticed_by_sessions_that_stay(
    own_postgres: PostgresServer,
    settings_for: Callable[..., Settings],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session, "LOOK_EVERY", 0.0)
    session._say_once.cache_clear()
    settings = settings_for(database_url=own_postgres.url)
    trusting = settings.model_copy(update={"trust_postgres_storage": True})
    with Client(settings) as client, Client(trusting) as another:
        kept = [one.enqueue("probe.echo").id for one in (client, another)]

        ask(own_postgres.url, f"ALTER SYSTEM SET {name} = off", "SELECT pg_reload_conf()")
        with pytest.raises(LedgerUnavailable, match=f"came back unsafe .* {name} = off"):
            while True:  # Postgres reloads by and by
                kept.append(client.enqueue("probe.echo").id)

        # Whoever vouches for the storage works on, also anew
        with Client(trusting) as new:
            kept += [one.enqueue("probe.echo").id for one in (another, new)]
        assert [r.message for r in caplog.records if "is trusted" in r.message] == [
            f"Postgres has {name} = off; its storage is trusted to keep every committed job,"
            " because WORKER_TRUST_POSTGRES_STORAGE is set."
        ]

        ask(own_postgres.url, f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")
        assert sum(another.counts(kept).values()) == len(kept)


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_comes_back_unsafe_counts_as_away_and_takes_nothing(
    own_postgres: PostgresServer, settings_for: Callable[..., Settings], name: str
) -> None:
    with Client(settings_for(database_url=own_postgres.url)) as client:
        kept = client.enqueue("probe.echo").id

        # When it was safe, and is restarted with a setting that no session can mend
        safe = own_postgres.options
        own_postgres.options = {**safe, name: "off"}
        own_postgres.restart()

        # Then who worked with it before waits for it, and who comes new is refused
        with pytest.raises(LedgerUnavailable, match=f"came back unsafe .* {name} = off"):
            client.enqueue("probe.echo", job_id="refused")
        with (
            Client(client.settings) as another,
            pytest.raises(
                NotDurable, match=f"^Postgres has {name} = off: .*; set it to on, or, if .*$"
            ),
        ):
            another.enqueue("probe.echo", job_id="refused")

        # Until it is safe again
        own_postgres.options = safe
        own_postgres.restart()
        assert client.job(kept).id == kept
        assert not client.summary(["refused"])
