"""A real service for each test: workers, keepers, a client, and what really ran."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LoggedProcess, Processes
from worker.client import Client
from worker.jobs.job import Job
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.settings import Settings

#: Seconds: short, so that the tests are; every figure of time follows from it.
LEASE = 2.0


class Service:
    """The parts of a running service, started as a test asks for them."""

    def __init__(self, processes: Processes, settings: Settings, folder: Path) -> None:
        self.processes, self.settings, self.folder = processes, settings, folder
        self.client = Client(settings)
        self.log = str(folder / "ran.log")
        self.gate = str(folder / "gate")

    def worker(
        self, pool: str = "threads", concurrency: int = 4, *options: str, **variables: str
    ) -> LoggedProcess:
        """A worker, once it fetches."""
        name = f"w{len(self.processes._started)}@%h"
        argv = [sys.executable, "-m", "worker", "run", "-P", pool, "-c", str(concurrency)]
        process = self.processes([*argv, "-n", name, *options], self._variables(variables))
        process.wait_for_line("ready.")
        return process

    def keeper(self, **variables: str) -> LoggedProcess:
        """A keeper; it need not lead yet."""
        argv = [sys.executable, "-m", "worker", "keeper"]
        return self.processes(argv, self._variables(variables))

    def _variables(self, variables: dict[str, str]) -> dict[str, str]:
        return {
            "WORKER_TASKS": "tests.acceptance.jobs",
            "WORKER_LEASE_SECONDS": str(LEASE),
            "WORKER_DRAIN_SECONDS": "10",
            "WORKER_RING_GRACE_SECONDS": "0.5",
            **variables,
        }

    def enqueue(self, task: str, *args: Any, **options: Any) -> str:
        """Enqueue one job; its id."""
        return self.client.enqueue(task, list(args), **options).id

    def enqueue_many(self, task: str, count: int, *args: Any) -> list[str]:
        """Enqueue `count` equal jobs; their ids."""
        jobs = [new_job(task, list(args)) for _ in range(count)]
        return [answer.id for answer in self.client.enqueue_many(jobs)]  # type: ignore[union-attr] # new ids never conflict

    def ended(self, job_id: str, seconds: float = 30.0) -> Job:
        """The job, once it has ended."""
        job = self.client.wait(job_id, seconds)
        assert job.state.is_final, f"job {job_id} is {job.state} after {seconds} s"
        return job

    def all_ended(self, ids: Sequence[str], seconds: float = 60.0) -> dict[State, int]:
        """How the jobs have ended, once all have."""
        self.until(lambda: sum(self._finals(ids)) == len(ids), seconds, f"{len(ids)} jobs ended")
        return self.client.counts(ids)

    def _finals(self, ids: Sequence[str]) -> list[int]:
        return [n for state, n in self.client.counts(ids).items() if state.is_final]

    def until(self, true: Callable[[], bool], seconds: float = 20.0, what: str = "it") -> None:
        """Wait until `true()`; a store has no event to wait on."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
            time.sleep(0.03)

    def running(self, ids: Sequence[str], count: int | None = None) -> None:
        """Wait until that many of `ids` (default: all) are running."""
        wanted = len(ids) if count is None else count
        self.until(
            lambda: self.client.counts(ids).get(State.RUNNING, 0) >= wanted,
            what=f"{wanted} jobs run",
        )

    def open_gate(self) -> None:
        """Let `test.hold` end."""
        Path(self.gate).touch()

    def ran(self, word: str) -> list[list[str]]:
        """Each line that tasks noted with `word`: the word, the pid, the time."""
        return [line for line in self.ran_any() if line[0] == word]

    def ran_any(self) -> list[list[str]]:
        """Each line that tasks noted: the word, the pid, the time."""
        path = Path(self.log)
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def service(processes: Processes, settings: Settings, tmp_path: Path) -> Iterator[Service]:
    """A service on the test's own databases; nothing of it runs yet."""
    made = Service(processes, settings, tmp_path)
    yield made
    made.client.close()
