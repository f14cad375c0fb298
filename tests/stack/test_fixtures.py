"""The test session's own servers: each test starts from nothing, and leaves nothing."""

from __future__ import annotations

import sys

import psycopg2
import pytest
import redis as redis_client

from tests.processes import Processes
from tests.servers import Databases
from worker.settings import Settings


def tables(url: str) -> set[str]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'")
            return {name for (name,) in cursor.fetchall()}
    finally:
        connection.close()


def test_each_database_is_migrated_and_its_own(databases: Databases, database_url: str) -> None:
    other = databases.new()

    assert other != database_url
    assert "jobs" in tables(database_url)
    assert tables(other) == tables(database_url)


@pytest.mark.parametrize("round_", range(2))
def test_each_redis_database_is_empty(redis_url: str, round_: int) -> None:
    with redis_client.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", round_)


def test_the_settings_name_the_tests_servers(settings: Settings, redis_url: str) -> None:
    assert settings.redis_url.get_secret_value() == redis_url


def test_a_line_of_a_subprocess_can_be_waited_for(processes: Processes) -> None:
    script = "import os; print('ready', os.environ['GREETING'], flush=True); input()"
    process = processes([sys.executable, "-c", script], {"GREETING": "hello"})

    assert process.wait_for_line("ready") == "ready hello"
    assert process.wait() != 0  # its stdin is empty


def test_waiting_for_a_line_ends_with_the_process(processes: Processes) -> None:
    process = processes([sys.executable, "-c", "print('done')"])

    with pytest.raises(AssertionError, match="without 'ready'"):
        process.wait_for_line("ready")
