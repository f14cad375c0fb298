"""What a worker's probes tell, and when a worker ends itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

import pytest
import redis

from tests.acceptance.conftest import LEASE, Service
from tests.processes import LoggedProcess
from tests.proxy import Proxy, proxied
from worker.jobs.states import State
from worker.runtime.consumer import RECONNECT_PAUSE
from worker.telemetry.watchdog import EXIT_WEDGED

POOLS = ["threads", "prefork", "solo"]
#: Seconds that a store is given to answer, and after which a worker without progress is wedged.
TIMEOUT = 1.0
LIMIT = max(2 * LEASE, 6 * TIMEOUT)
HEALTH = {
    "WORKER_HEALTH_PORT": "0",
    "WORKER_HEALTH_HOST": "127.0.0.1",
    "WORKER_CONNECT_TIMEOUT_SECONDS": str(TIMEOUT),
}


class Probed:
    """A process with a health port."""

    def __init__(self, process: LoggedProcess) -> None:
        self.process = process
        line = process.wait_for_line("Health is served at port ")
        self.port = int(line.rpartition("port ")[2].rstrip("."))

    def ask(self, path: str) -> list[str]:
        """Why the probe fails; nothing when it does not."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        assert (answer.status, said["status"]) in {(200, "ok"), (503, "unhealthy")}
        assert bool(said["reasons"]) == (answer.status == 503)
        return list(said["reasons"])

    def becomes_ready(self, seconds: float = 60.0) -> None:
        """Wait until it is ready; it lives all the time."""
        self._until(True, "", seconds)

    def becomes_unready(self, reason: str, seconds: float = 60.0) -> None:
        """Wait until it is not ready for that reason; it lives all the time."""
        self._until(False, reason, seconds)

    def lives(self, seconds: float) -> None:
        """It lives for so long, asked again and again: an outage is only a length of time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.ask("/livez") == []
            assert self.process.exit_code is None
            time.sleep(0.1)

    def _until(self, ready: bool, reason: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            reasons = self.ask("/readyz")
            assert self.ask("/livez") == []
            if bool(reasons) != ready and (ready or reason in " ".join(reasons)):
                return
            assert time.monotonic() < deadline, f"after {seconds} s: {reasons}"
            time.sleep(0.1)


@pytest.fixture
def postgres_proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


@pytest.fixture
def redis_proxy(redis_url: str) -> Iterator[Proxy]:
    with proxied(redis_url) as proxy:
        yield proxy


def _worker(service: Service, pool: str, **variables: str) -> Probed:
    concurrency = 1 if pool == "solo" else 2
    return Probed(service.worker(pool, concurrency, **{**HEALTH, **variables}))


class Away:
    """One store that a worker reaches by way of a proxy, and others reach as they do."""

    def __init__(self, service: Service, proxy: Proxy, store: str) -> None:
        self.proxy, self.store, self._service = proxy, store, service
        self.variables = {"DATABASE_URL" if store == "Postgres" else "REDIS_URL": proxy.url}

    def ends(self, worker: Probed) -> None:
        """The worker is told by its probe to miss it; once it is back the worker consumes again."""
        worker.becomes_unready(f"{self.store} does not answer")
        self.proxy.heal()
        worker.becomes_ready()
        job = self._service.enqueue("test.note", self._service.log)
        assert self._service.ended(job).state is State.SUCCEEDED
        assert worker.process.exit_code is None


@pytest.fixture(params=["Postgres", "Redis"])
def away(
    service: Service, postgres_proxy: Proxy, redis_proxy: Proxy, request: pytest.FixtureRequest
) -> Away:
    store = str(request.param)
    return Away(service, postgres_proxy if store == "Postgres" else redis_proxy, store)


def test_a_worker_without_a_store_lives_is_not_ready_and_consumes_again(
    service: Service, away: Away
) -> None:
    # Given a worker that is ready, whose tasks would have Celery give up after one retry
    service.keeper()
    tasks = "tests.acceptance.jobs,tests.acceptance.impatient"
    worker = _worker(service, "threads", WORKER_TASKS=tasks, **away.variables)
    worker.becomes_ready()
    # When the store is silent for longer than what is wedged may take, it lives on
    away.proxy.blackhole()
    worker.lives(LIMIT + 2 * LEASE)
    away.ends(worker)
    # The same when it refuses
    away.proxy.refuse()
    is_redis = away.store == "Redis"
    if is_redis:
        worker.process.wait_for_line("Trying again in ", times=2)
    away.ends(worker)
    # And the pauses between its tries did not grow
    pauses = re.findall(r"Trying again in ([\d.]+) second", worker.process.output)
    assert set(pauses) == ({f"{RECONNECT_PAUSE:.2f}"} if is_redis else set())


def test_another_pool_without_a_store_is_not_ready_and_consumes_again(
    service: Service, away: Away
) -> None:
    service.keeper()
    workers = [_worker(service, pool, **away.variables) for pool in ("prefork", "solo")]
    for worker in workers:
        worker.becomes_ready()
    away.proxy.blackhole()
    for worker in workers:
        worker.becomes_unready(f"{away.store} does not answer")
    away.proxy.heal()
    for worker in workers:
        worker.becomes_ready()
    # A job in each of their slots: two children and one event loop
    ids = service.enqueue_many("test.hold", 3, service.log, service.gate)
    service.until(lambda: len({pid for _, pid, _ in service.ran("start")}) == 3)
    service.open_gate()
    assert service.all_ended(ids) == {State.SUCCEEDED: 3}
    assert [worker.process.exit_code for worker in workers] == [None, None]


def test_a_draining_worker_lives_and_is_not_ready(service: Service) -> None:
    workers = [_worker(service, pool, WORKER_DRAIN_SECONDS="60") for pool in POOLS]
    slots = 2 + 2 + 1
    ids = service.enqueue_many("test.hold", slots, service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == slots)
    for worker in workers:
        worker.process.send(signal.SIGTERM)
    for worker in workers:
        worker.becomes_unready("shutting down")
    service.open_gate()
    assert [worker.process.wait(60) for worker in workers] == [0, 0, 0]
    assert service.all_ended(ids) == {State.SUCCEEDED: slots}


def test_a_solo_worker_that_runs_a_long_job_lives(service: Service) -> None:
    # The job holds up the event loop for longer than what is wedged may take, and lawfully
    worker = _worker(service, "solo")
    job = service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 1)
    worker.lives(LIMIT + 2 * LEASE)
    service.open_gate()
    assert service.ended(job).state is State.SUCCEEDED
    worker.lives(LEASE)
    assert len(service.ran("start")) == 1


@pytest.mark.parametrize("pool", ["prefork", "solo"])  # threads: as those whose writer is
def test_a_worker_whose_event_loop_is_wedged_says_so_and_ends(
    service: Service, pool: str, tmp_path: Path
) -> None:
    worker = _wedged(service, pool, "loop", tmp_path)
    assert _last_words(worker) == [f"The event loop has not turned for over {LIMIT:g} s."]


def test_a_worker_whose_writer_is_wedged_says_so_and_ends(service: Service, tmp_path: Path) -> None:
    service.keeper()
    worker = _wedged(service, "threads", "writer", tmp_path)
    job = service.enqueue("test.note", service.log)
    assert _last_words(worker) == [f"No result could be written for over {LIMIT:g} s."]
    # And its job is done by whoever takes its place
    service.worker("threads", 2)
    assert service.ended(job, 60).state is State.SUCCEEDED


def test_a_worker_whose_writer_has_died_says_so_and_ends(service: Service, tmp_path: Path) -> None:
    worker = _wedged(service, "threads", "death", tmp_path)
    service.enqueue("test.note", service.log)
    assert _last_words(worker) == ["The thread 'ledger-writer' has died."]


def _wedged(service: Service, pool: str, how: str, folder: Path) -> Probed:
    """A worker that was well until it was wedged."""
    tasks = "tests.acceptance.jobs,tests.acceptance.wedges"
    worker = _worker(service, pool, WORKER_TASKS=tasks, WEDGES=str(folder))
    worker.becomes_ready()
    job = service.enqueue("test.note", service.log)
    assert service.ended(job).state is State.SUCCEEDED
    gate = folder / how
    gate.touch()
    service.until(lambda: not gate.exists())
    return worker


def _last_words(worker: Probed) -> Sequence[str]:
    """Why its liveness fails; it then ends by itself, with the exit code for it."""
    deadline = time.monotonic() + 60
    while not (reasons := worker.ask("/livez")):
        assert time.monotonic() < deadline, "it lives"
        time.sleep(0.1)
    assert set(reasons) <= set(worker.ask("/readyz"))
    assert worker.process.wait(60) == EXIT_WEDGED
    assert "This process is wedged and ends, to be started again" in worker.process.output
    return reasons


def test_a_plain_celery_worker_that_waits_for_postgres_lives(
    service: Service, postgres_proxy: Proxy
) -> None:
    postgres_proxy.refuse()
    worker = Probed(
        service.processes(
            [sys.executable, "-m", "celery", "-A", "tests.acceptance.shop", "worker",
             "-l", "INFO", "-P", "threads", "-c", "2"],
            {"DATABASE_URL": postgres_proxy.url, **HEALTH},
        )
    )  # fmt: skip
    worker.becomes_unready("Postgres does not answer")
    postgres_proxy.heal()
    worker.becomes_ready()
    assert worker.process.terminate(60) == 0


#: Imported by Python before all else: while the file is there, no name is found, nor not found.
_NO_NAMES = """
import os, socket, time
look_up = socket.getaddrinfo

def wait(*args, **options):
    while os.path.exists(os.environ["NO_NAMES"]):
        time.sleep(0.05)
    return look_up(*args, **options)

socket.getaddrinfo = wait
"""


def test_a_worker_that_can_look_up_no_name_while_redis_is_away_lives(
    service: Service, tmp_path: Path
) -> None:
    # Given a worker, and a system that looks up names for ever
    (tmp_path / "sitecustomize.py").write_text(_NO_NAMES)
    gate = tmp_path / "no-names"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    worker = _worker(service, "threads", PYTHONPATH=path, NO_NAMES=str(gate))
    worker.becomes_ready()
    gate.touch()
    # When Redis drops every connection, the event loop's too
    with redis.Redis.from_url(service.settings.redis_url.get_secret_value()) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    # Then the worker lives on, for longer than what is wedged may
    worker.lives(LIMIT + 2 * LEASE)
    gate.unlink()
    worker.becomes_ready()
    job = service.enqueue("test.note", service.log)
    assert service.ended(job).state is State.SUCCEEDED


@pytest.mark.parametrize("command", [["run"], ["keeper"]])
def test_a_health_port_that_is_taken_is_told_in_one_sentence(
    service: Service, command: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = service.processes(
            [sys.executable, "-m", "worker", *command], {**HEALTH, "WORKER_HEALTH_PORT": port}
        )
        assert process.wait(60) == 2
    assert f"Error: WORKER_HEALTH_PORT is {port}; " in process.output
    assert "Traceback" not in process.output


def test_the_process_for_suspects_does_not_ask_for_its_parents_port(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {**HEALTH, "WORKER_HEALTH_PORT": port, "WORKER_ISOLATED": f"{os.getpid()}:a"}
        isolated = service.worker("prefork", 1, **variables)  # it says that it is ready
        assert isolated.terminate(60) == 0


def test_a_keeper_without_postgres_lives_and_is_not_ready(
    service: Service, postgres_proxy: Proxy
) -> None:
    keeper = Probed(service.keeper(DATABASE_URL=postgres_proxy.url, **HEALTH))
    keeper.becomes_ready()
    for outage in (postgres_proxy.blackhole, postgres_proxy.refuse):
        outage()
        keeper.becomes_unready("")
        postgres_proxy.heal()
        keeper.becomes_ready()
    assert keeper.process.terminate(60) == 0
