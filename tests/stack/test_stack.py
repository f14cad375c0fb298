"""The stack as a whole: everything starts, is told where, and stops in order."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tests import servers
from worker.errors import StackError
from worker.stack import binaries, lock
from worker.stack.stack import Stack, running

STEPS_UP = ["Starting Postgres", "Starting Redis", "Migrating the database"]
STEPS_DOWN = ["Draining the workers", "Stopping the keeper", "Stopping Redis", "Stopping Postgres"]


@pytest.fixture
def data() -> Iterator[Path]:
    with servers.folder() as path:
        yield path / "st ack"


def stores(data: Path) -> Stack:
    """A stack of its two stores alone."""
    return Stack(data, workers=0, keepers=0)


def test_without_a_redis_there_are_no_data_of_a_postgres(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package that brings Redis brings a Postgres of perhaps another version.
    monkeypatch.setattr(binaries, "_package_folder", lambda name: None)
    monkeypatch.setenv("PATH", str(data))

    with pytest.raises(StackError, match=r"Redis is not installed: .*\[local\]"):
        stores(data).start()

    assert not (data / "postgres").exists() and not lock.is_held(data / "stack.lock")


def test_it_starts_migrates_and_stops_in_order(data: Path) -> None:
    steps: list[str] = []
    stack = stores(data)

    stack.start(steps.append)
    try:
        connection = psycopg2.connect(stack.environment["DATABASE_URL"])
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM ledger.jobs")
            assert cursor.fetchone() == (0,)
        connection.close()
    finally:
        stack.stop(steps.append)

    assert steps == [*STEPS_UP, *STEPS_DOWN]
    assert not stack.postgres.alive
    assert not stack.redis.alive


def test_its_addresses_are_on_disk_only_while_it_runs(data: Path) -> None:
    assert running(data) is None

    with stores(data) as stack:
        assert running(data) == stack.environment
        assert stat.S_IMODE((data / "stack.json").stat().st_mode) == 0o600

    assert running(data) is None
    assert not (data / "stack.json").exists()


def test_addresses_left_by_a_stack_that_was_killed_are_not_believed(data: Path) -> None:
    with stores(data):
        left = (data / "stack.json").read_text()
    (data / "stack.json").write_text(left)

    assert running(data) is None


def test_two_stacks_on_one_folder_are_refused_in_one_sentence(data: Path) -> None:
    with stores(data) as first:
        with pytest.raises(StackError, match=r"A stack is running in .* already; stop it, or"):
            stores(data).start()
        assert running(data) == first.environment


def test_two_stacks_on_two_folders_run_at_once(data: Path) -> None:
    with stores(data / "one") as one, stores(data / "two") as two:
        assert one.environment != two.environment


def test_its_ports_stay_from_start_to_start_while_they_are_free(data: Path) -> None:
    with stores(data / "other"), stores(data) as stack:  # the preferred ones may be taken
        before = stack.environment

    with stores(data) as stack:
        assert stack.environment == before
    with (
        socket.create_server(("127.0.0.1", stack.postgres.port)) as taken,
        stores(data) as stack,
    ):
        assert stack.postgres.port != taken.getsockname()[1]


def test_a_port_that_was_chosen_is_used_or_refused(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port} of 127.0.0.1 is taken; stop"):
            Stack(data, workers=0, keepers=0, postgres_port=port).start()

    with Stack(data, workers=0, keepers=0, postgres_port=port) as stack:
        assert stack.postgres.port == port


def test_a_store_that_dies_is_started_again_at_its_address(data: Path) -> None:
    with stores(data) as stack:
        before = stack.environment
        stack.redis.kill()

        said = stack.tick()
        while not stack.redis.alive:
            said += stack.tick()

        assert said[0] == "Redis ended with -9; it is started again in 1 s."
        assert said[-1] == "Redis was started again."
        assert stack.environment == before


def test_a_failed_start_leaves_nothing_running(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stores(data)
    monkeypatch.setattr(stack, "_migrate", lambda: _fail())

    with pytest.raises(StackError, match="the migration failed"):
        stack.start()

    assert not stack.postgres.alive
    assert not stack.redis.alive
    assert not lock.is_held(data / "stack.lock")


def _fail() -> None:
    raise StackError("the migration failed")


def test_the_stack_needs_no_celery() -> None:
    script = "import sys, worker.stack.stack; print(*sys.modules)"
    listed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert not {"celery", "kombu", "sqlalchemy", "redis"} & set(listed.stdout.split())
