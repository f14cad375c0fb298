"""Whatever an operator gets wrong is one sentence and an exit code."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import psycopg2
import pytest

from tests.cli.said import Command
from worker.client import Client
from worker.jobs.states import State

DEEP = "[" * 101 + "]" * 101
BOTTOMLESS = "[" * 100_000


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["probe.ech"], "No worker knows a task 'probe.ech', the nearest is 'probe.echo'; set"),
        (
            ["probe.echo", "--args", "[1, 2]"],
            "The arguments do not fit task 'probe.echo': too many",
        ),
        (["probe.sleep"], "The arguments do not fit task 'probe.sleep': missing a required"),
        (["probe.echo", "--kwargs", '{"valu": 1}'], "got an unexpected keyword argument 'valu'"),
        (
            ["probe.echo", "--queue", "celer"],
            "No worker has ever consumed a queue 'celer', the near",
        ),
        (["probe.echo", "--args", "[1,"], "--args is no JSON: "),
        (["probe.echo", "--args", "[NaN]"], "--args is no JSON: NaN is no JSON value."),
        (["probe.echo", "--args", "1"], "args must be a list, not int."),
        (["probe.echo", "--kwargs", "[]"], "kwargs must be an object, not list."),
        (["probe.echo", "--args", f"[{DEEP}]"], "--args nests deeper than 100 levels; flatten it."),
        (["probe.echo", "--args", BOTTOMLESS], "--args nests deeper than 100 levels; flatten it."),
        (["probe.echo", "--args", f"[{'9' * 5000}]"], "--args is no JSON: "),
        (["probe.echo", "--args", json.dumps(["x" * 2000])], "The payload has 20"),
        (
            ["probe.echo", "--id", "x" * 256],
            "A job id may have at most 255 bytes; this one has 256",
        ),
        (["probe.echo", "--id", ""], "A job id must be a non-empty text"),
        (["probe.echo", "--key", ""], "The idempotency key must be a non-empty text"),
        (["probe.echo", "--in", "-1"], "delay must be seconds from 0 to below 1e9, not -1.0."),
        (["probe.echo", "--in", "nan"], "delay must be seconds from 0 to below 1e9, not nan."),
        (["probe.echo", "--args", '["\udcff"]'], "it is not valid UTF-8."),
        ([""], "The task name must be a non-empty text"),
    ],
)
def test_a_bad_job_is_refused(
    here: Command, client: Client, arguments: list[str], sentence: str
) -> None:
    said = here("enqueue", *arguments, WORKER_PAYLOAD_MAX_BYTES="2000")

    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert client.counts() == {}


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"task": "probe.echo", "args": [NaN]}', "The line is no JSON: NaN is no JSON value."),
        (b'{"task": "probe.echo", "args": ' + DEEP.encode() + b"}", "nests deeper than 100"),
        (b'{"task": ' + b"[" * 900 + b"]" * 900 + b"}", "nests deeper than 100"),
        (BOTTOMLESS.encode(), "nests deeper than 100"),
        (
            b'{"task": "probe.echo\xff"}',
            "The line is no JSON: 'utf-8' codec can't decode byte 0xff",
        ),
        (b'{"task": 1}', "The task name must be a non-empty text without NUL, not 1."),
        (b'{"args": []}', "No task is named"),
        (b'{"task": "probe.echo", "priority": true}', "A priority is a whole number from 0"),
        (b'{"task": "probe.echo", "priority": "' + b"9" * 9000 + b'"}', "999…"),
        (b'{"task": "probe.echo", "in": "1"}', "delay must be seconds"),
        (b'{"task": "probe.echo", "id": "a\\u0000"}', "A job id may not hold a NUL character."),
        (b'{"task": "probe.echo", "key": "\\ud800"}', "The idempotency key must be valid Unicode."),
        (b"1", "A line must be a JSON object"),
    ],
)
def test_a_bad_line_is_refused(
    here: Command, client: Client, tmp_path: Path, line: bytes, sentence: str
) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(b"\n" + line + b"\n")

    said = here("enqueue", "--file", str(tmp_path / "jobs.jsonl"))

    assert said.code == 2
    told, end = said.err.splitlines()
    assert told.startswith("Line 2: ") and sentence in told
    assert end == "Error: 1 of 1 lines refused; the others are enqueued."
    assert client.counts() == {}


@pytest.mark.usefixtures("catalogue")
def test_a_key_with_another_payload_is_a_conflict(here: Command) -> None:
    first = here("enqueue", "probe.echo", "--key", "k", "--json").json["id"]

    said = here("enqueue", "probe.echo", "--key", "k", "--args", "[1]")

    assert said.code == 2
    assert said.err == (
        f"Error: The idempotency key 'k' belongs to job {first} with another payload; use a new"
        " key for a new request.\n"
    )


def test_an_empty_catalogue_accepts_with_a_warning(process: Command, client: Client) -> None:
    said = process("enqueue", "never.heard.of", "--id", "a")

    assert (said.code, said.out) == (0, "a  queued\n")
    assert said.err == (
        "Warning: No worker has published its tasks yet: accepting without a check.\n"
    )
    assert client.job("a").state is State.QUEUED


@pytest.mark.usefixtures("catalogue")
def test_without_redis_the_job_is_durable_all_the_same(process: Command, client: Client) -> None:
    said = process("enqueue", "probe.echo", "--id", "a", REDIS_URL="redis://:sesame@127.0.0.1:1/0")

    assert (said.code, said.out) == (0, "a  queued\n")
    assert said.err == (
        "Warning: 1 jobs are durable, their doorbells are late: Redis is not available:"
        " the connection is refused; check REDIS_URL, or start Redis.\n"
    )
    assert client.job("a").state is State.QUEUED


COMMANDS = [
    ["enqueue", "probe.echo"],
    ["job", "show", "a"],
    ["job", "list"],
    ["job", "cancel", "a"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_without_postgres_it_is_3(here: Command, arguments: list[str]) -> None:
    said = here(*arguments, DATABASE_URL="postgresql://u:sesame@127.0.0.1:1/x")

    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("Error: Postgres is not available: ")
    assert said.err.endswith("; check DATABASE_URL, or start Postgres.\n")


def test_a_silent_postgres_is_given_up_in_bounded_time(process: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        said = process(
            *("enqueue", "probe.echo"),
            DATABASE_URL=f"postgresql://u:sesame@127.0.0.1:{silent.getsockname()[1]}/x",
            WORKER_CONNECT_TIMEOUT_SECONDS="1",
        )
    assert said.code == 3
    assert "timeout expired" in said.err
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_without_tables_it_says_migrate(
    here: Command, database_url: str, arguments: list[str]
) -> None:
    _execute(database_url, "DROP SCHEMA ledger CASCADE")

    said = here(*arguments)

    assert (said.code, said.out) == (2, "")
    missing = "The database has no celery-ledger tables in its schema 'ledger'"
    assert said.err == f"Error: {missing}; run `worker migrate`.\n"


@pytest.mark.parametrize("arguments", [*COMMANDS, ["migrate"], ["check"]], ids=" ".join)
def test_tables_newer_than_the_code_are_left_alone(
    here: Command, database_url: str, arguments: list[str]
) -> None:
    _execute(database_url, "UPDATE ledger.alembic_version SET version_num = '9999'")

    said = here(*arguments)

    assert said.code == 2
    assert "The database schema is at 9999, which this code (at " in said.out + said.err
    assert "deploy the version that made it." in said.out + said.err


def test_wrong_settings_are_all_in_one_report(process: Command) -> None:
    said = process(
        *("job", "list"),
        DATABASE_URL="",
        REDIS_URL="http://:sesame@127.0.0.1/0",
        WORKER_CONCURRENCY="none",
        WORKER_LEASE_SECONDS="0",
    )

    assert said.code == 2
    faults = said.err.removeprefix("Error: ").splitlines()
    assert [fault.split()[0] for fault in faults] == [
        "DATABASE_URL",
        "REDIS_URL",
        "WORKER_CONCURRENCY",
        "WORKER_LEASE_SECONDS",
    ]


def test_an_option_that_celery_has_not_names_the_command_that_was_typed(process: Command) -> None:
    said = process("run", "--concurency=3")

    assert said.code == 2
    assert "worker run [OPTIONS]" in said.err
    assert "No such option '--concurency'" in said.err
    assert "`celery worker --help` lists Celery's own options." in said.err


@pytest.mark.parametrize("job_id", ["", "x" * 256, "\udcff"])
def test_a_malformed_id_is_told_before_anything_is_opened(here: Command, job_id: str) -> None:
    said = here("job", "show", job_id, DATABASE_URL="postgresql://127.0.0.1:1/none")

    assert said.code == 2
    assert said.err.startswith("Error: A job id ")


@pytest.mark.parametrize(
    "arguments",
    [["job", "list", "--queue", "\udcff"], ["job", "cancel", "a", "--reason", "\udcff"]],
    ids=["queue", "reason"],
)
def test_bytes_that_are_no_text_are_refused(here: Command, arguments: list[str]) -> None:
    said = here(*arguments)

    assert said.code == 2
    assert "it is not valid UTF-8." in said.err


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["job", "lost"], ["job", "list", "--limt", "1"]]
)
def test_a_command_that_there_is_not_is_wrong_usage(here: Command, arguments: list[str]) -> None:
    said = here(*arguments)

    assert said.code == 2
    assert "No such " in said.err


def _execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()
