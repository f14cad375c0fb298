from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

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


def test_the_diagram_is_that_of_the_table_of_moves() -> None:
    assert readme_block("mermaid", "stateDiagram").rstrip("\n") == diagram()


def test_the_readme_stays_short() -> None:
    assert len(read("README.md").splitlines()) <= 250


def test_the_durable_example_runs(environment: dict[str, str]) -> None:
    check = "assert app.conf.broker_transport == 'worker.broker.transport:Transport'"
    code = f"{readme_block('python', 'durable(app)')}\n{check}\n"

    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)


@pytest.fixture
def worker(processes: Processes) -> None:
    """A worker that takes what the README's producers send."""
    processes([sys.executable, "-m", "worker", "run"]).wait_for_line(" ready.")


@pytest.mark.usefixtures("worker")
def test_the_readmes_producers_run(
    environment: dict[str, str], settings: Settings, redis_url: str
) -> None:
    example = readme_block("python", "with Client() as client:")
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, cwd=ROOT, check=True, capture_output=True
    )
    foreign = readme_block("python", "lpush") + "\nprint(message['headers']['id'])\n"
    pushed = subprocess.run(
        [sys.executable, "-c", foreign], env=environment, cwd=ROOT, check=True, capture_output=True
    )
    *_, command, name, entry = shlex.split(readme_block("sh", "redis-cli"))
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command(command, name, entry)

    assert done.stdout.split()[0] == b"succeeded"
    for job_id in (pushed.stdout.decode().strip(), json.loads(entry)["headers"]["id"]):
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
    compile(block.text, block.page, "exec")


def test_what_is_imported_in_the_pages_exists() -> None:
    lines = {
        line
        for block in blocks("python")
        for line in block.text.splitlines()
        if line.startswith(("from worker", "import worker"))
    }
    code = "\n".join(sorted(lines))

    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
