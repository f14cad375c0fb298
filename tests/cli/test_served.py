"""`worker up` says what its workers serve, and runs a Celery app of the user's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.processes import Processes
from worker.cli.served import NAMED, said_of

APP = """
from celery import Celery
from worker.runtime import durable

app = Celery("own")
{}

@app.task
def order(number):
    return number + 1
"""


@pytest.fixture
def data() -> Iterator[Path]:
    with servers.folder() as path:
        yield path / "stack"


def test_it_runs_the_workers_of_a_durable_app_and_says_what_they_serve(
    processes: Processes, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(APP.format("durable(app)"))
    path = {"PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-m", "worker", "up", "--data", str(data), "--workers", "1"]
    stack = processes([*argv, "--app", "own"], path)
    assert "own.order." in stack.wait_for_line("The workers serve: ", 90)
    assert "WORKER_TASKS" not in stack.output, "it is an app of the user's already"
    say = "import own; print(own.order.delay(41).get(timeout=60))"
    python = sys.executable
    script = f'eval "$({python} -m worker env --data {data})"; exec {python} -c "{say}"'
    done = subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == "42\n", done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", "The app 'plain' is not durable; call `durable(app)`"),
        ("absent", "--app names 'absent', which cannot be loaded: "),
        ("leaves", "--app names 'leaves', which cannot be loaded: SystemExit: 3; expected"),
    ],
)
def test_an_app_that_it_cannot_run_is_one_sentence(
    environment: dict[str, str], tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "plain.py").write_text(APP.format(""))
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli.served", name],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_an_app_that_is_not_durable_ends_the_stack_by_that_sentence(
    processes: Processes, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.py").write_text(APP.format(""))
    argv = [sys.executable, "-m", "worker", "up", "--data", str(data), "--app", "plain"]
    stack = processes(argv, {"PYTHONPATH": str(tmp_path)})
    assert stack.wait(60) == 2
    assert "\nError: The app 'plain' is not durable; call `durable(app)`" in stack.output
    assert "Traceback" not in stack.output


def test_many_tasks_are_named_in_part() -> None:
    said = said_of([f"task.number{number:02}" for number in range(NAMED + 3)], None)
    assert "task.number00, " in said and " and 3 more." in said
    assert "worker up --app shop.app" in said
    assert said_of([], "shop").startswith("The workers serve: none.")
