"""`worker up` and `worker env`: the whole service with one command, and how to find it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tests import servers
from tests.processes import LoggedProcess, Processes

WORKER = [sys.executable, "-m", "worker"]


@pytest.fixture
def data() -> Iterator[Path]:
    with servers.folder() as path:
        yield path / "st ack"


def worker(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WORKER, *map(str, arguments)], capture_output=True, text=True)


def up(processes: Processes, data: Path, *arguments: str) -> LoggedProcess:
    return processes([*WORKER, "up", "--data", str(data), "--workers", "1", *arguments])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_told_to_stop(
    processes: Processes, data: Path, number: signal.Signals
) -> None:
    stack = up(processes, data)
    stack.wait_for_line("Ready.", 60)

    stack.send(number)

    assert stack.wait(90) == 0
    lines = stack.output.splitlines()
    assert lines[-1] == "Stopping Postgres …"
    assert "Draining the workers …" in lines


def test_a_shell_can_evaluate_where_it_is(processes: Processes, data: Path) -> None:
    stack = up(processes, data)
    stack.wait_for_line(f"""eval "$(worker env --data '{data}')\"""", 60)
    script = 'eval "$("$@")" && printf "%s\\n" "$DATABASE_URL" "$REDIS_URL"'

    told = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *WORKER, "env", "--data", str(data)],
        capture_output=True,
        text=True,
        check=True,
    )

    database_url, redis_url = told.stdout.splitlines()
    psycopg2.connect(database_url).close()
    assert redis_url.startswith("redis://:")


def test_json_is_the_only_line_on_stdout(data: Path) -> None:
    with subprocess.Popen(
        [*WORKER, "up", "--data", str(data), "--workers", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as stack:
        assert stack.stdout is not None
        try:
            told = json.loads(stack.stdout.readline())
        finally:
            stack.terminate()
            rest = stack.stdout.read()

    assert told["DATABASE_URL"].startswith("postgresql://postgres:")
    assert told["data"] == str(data)
    assert rest == b""
    assert stack.returncode == 0


def test_env_without_a_stack_is_one_sentence(data: Path) -> None:
    said = worker("env", "--data", data)

    assert said.returncode == 3
    assert said.stdout == ""
    assert said.stderr == (
        f"Error: No stack is running in {data}; start one with `worker up --data '{data}'`.\n"
    )


def test_a_second_stack_on_the_same_data_is_one_sentence(processes: Processes, data: Path) -> None:
    up(processes, data).wait_for_line("Ready.", 60)

    said = worker("up", "--data", data)

    assert said.returncode == 2
    assert said.stderr == (
        f"Error: A stack is running in {data} already; stop it, or name another directory.\n"
    )
