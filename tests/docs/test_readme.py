from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import pytest
import redis

from tests.docs.pages import ROOT, Block, blocks, read
from tests.processes import Processes
from worker.client import Client
from worker.jobs.states import State, diagram
from worker.settings import Settings


def readme_block(language: str, holding: str) -> str:
    """The README's one block of this language that holds this text."""
    (block,) = [
        block for block in blocks(language) if block.page == "README.md" and holding in block.text
    ]
    return block.text


def run(code: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A Python that has run `code` at the repository's root."""
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_diagram_is_that_of_the_table_of_moves() -> None:
    assert readme_block("mermaid", "stateDiagram").rstrip("\n") == diagram()


def test_the_readme_stays_short() -> None:
    assert len(read("README.md").splitlines()) <= 250


def test_the_durable_example_runs(environment: dict[str, str]) -> None:
    code = f"{readme_block('python', 'durable(app)')}\nprint(app.connection().transport_cls)\n"

    done = run(code, environment)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "worker.broker.transport:Transport\n"


@pytest.fixture
def worker(processes: Processes) -> None:
    """A worker that takes what the README's producers send."""
    processes([sys.executable, "-m", "worker", "run"]).wait_for_line(" ready.")


@pytest.mark.usefixtures("worker")
def test_the_readmes_producers_run(
    environment: dict[str, str], settings: Settings, redis_url: str
) -> None:
    done = run(readme_block("python", "with Client() as client:"), environment)
    foreign = readme_block("python", "lpush") + "\nprint(message['headers']['id'])\n"
    pushed = run(foreign, environment)
    *_, command, name, entry = shlex.split(readme_block("sh", "redis-cli"))
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command(command, name, entry)

    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.split()[0] == "succeeded" and last == "1500 jobs are durable"
    assert pushed.returncode == 0, pushed.stderr
    for job_id in (pushed.stdout.strip(), json.loads(entry)["headers"]["id"]):
        assert wait_for(settings, job_id) is State.SUCCEEDED


def wait_for(settings: Settings, job_id: str) -> State:
    """The job's state once it has ended; a foreign one is a row only when a worker took it."""
    with Client(settings) as client:
        adopted = until(lambda: bool(client.summary([job_id])))
        assert adopted, f"no worker took {job_id}"
        return client.wait(job_id, 20).state


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # a list in Redis has no event to wait on
    return True


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.page)
def test_python_in_the_pages_compiles(block: Block) -> None:
    code = compile(block.text, block.page, "exec")

    assert code.co_names  # and it is not empty


def test_what_is_imported_in_the_pages_exists() -> None:
    lines = {
        line
        for block in blocks("python")
        for line in block.text.splitlines()
        if line.startswith(("from worker", "import worker"))
    }
    code = "\n".join(sorted(lines))
    names = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    tell = "print(*(name for name in dir() if not name.startswith('__')))"

    done = run(f"{code}\n{tell}\n", {**os.environ, "PYTHONPATH": "."})

    assert done.returncode == 0, done.stderr
    assert names and done.stdout.split() == sorted(names)
