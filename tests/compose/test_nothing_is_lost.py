"""The run: under load, all of the stack is killed, scaled and replaced; then it is counted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest

from tests.chaos import audit
from tests.compose.conftest import JOBS, Image
from tests.compose.engine import build, docker, inspect, until
from tests.compose.mixture import Order, Producer, judge, mixed
from tests.compose.stack import Stack
from worker.jobs.states import FINAL

#: Seconds over which the jobs of one step are enqueued, and a store is away.
SPREAD, AWAY = (12.0 if JOBS >= 2000 else 5.0), 3.0
#: Seconds until all has ended; suspects run again with few places.
END = 600.0

_FOLLOWING = """
FROM {image}
LABEL org.opencontainers.image.version=following
ENV FOLLOWING=1
"""


class Run:
    """What the steps do, each while jobs run and more are enqueued."""

    def __init__(self, stack: Stack, producer: Producer) -> None:
        self.stack, self.producer = stack, producer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, orders: list[Order]) -> Iterator[None]:
        """Enqueue the jobs of this step, and do what it does once something runs."""
        began = time.monotonic()
        with self.producer.load(orders, SPREAD):
            until(lambda: self.running() > 0, 90, f"{name}: jobs that run")
            yield
        self.seconds[name] = round(time.monotonic() - began, 1)

    def running(self) -> int:
        """How many jobs run now."""
        ((count,),) = self.stack.rows("SELECT count(*) FROM ledger.jobs WHERE state = 'running'")
        return int(count)

    def lost(self) -> int:
        """Attempts that were lost with their worker, so far."""
        ((count,),) = self.stack.rows("SELECT count(*) FROM ledger.attempts WHERE outcome = 'lost'")
        return int(count)

    def scale(self, workers: int) -> None:
        """One line, and wait until it is so."""
        self.stack.up("--scale", f"worker={workers}")
        self.stack.set(WORKERS=str(workers))  # for the next `up`
        self.stack.wait_until_healthy(worker=workers)

    def kill_store(self, service: str) -> None:
        """SIGKILL a store, start it again, wait until it is well."""
        (container,) = self.stack.containers(service)
        docker("kill", container)
        time.sleep(AWAY)  # the outage itself
        docker("start", container)
        self.stack.wait_until_healthy(**{service: 1})

    def kill_worker(self) -> int:
        """SIGKILL the worker that runs most; how many jobs died with it."""
        found: list[tuple[Any, ...]] = []

        def busiest() -> bool:
            found[:] = self.stack.rows(
                "SELECT lease, worker, count(*) FROM ledger.jobs WHERE state = 'running'"
                " AND worker NOT LIKE 'isolated%%' GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 1"
            )
            return bool(found)

        until(busiest, 60, "a worker that runs something")
        lease, name, _ = found[0]
        container = self.stack.container_of("worker", name.partition("@")[2])
        docker("kill", container)
        held = self.held_by(lease)
        docker("start", container)
        until(lambda: self.held_by(lease) == 0, 60, "the rescue of what the dead worker ran")
        return held

    def held_by(self, lease: str) -> int:
        """How many jobs run under a lease."""
        ((count,),) = self.stack.rows(
            "SELECT count(*) FROM ledger.jobs WHERE state = 'running' AND lease = %s", lease
        )
        return int(count)

    def kill_leader(self) -> None:
        """SIGKILL the keeper that leads; another must."""
        leader = self.leader()
        assert leader is not None
        container = self.stack.container_of("keeper", leader.partition(":")[0])
        docker("kill", container)
        until(lambda: self.leader() not in (None, leader), 60, "another leader")
        docker("start", container)
        self.stack.wait_until_healthy(keeper=2)

    def leader(self) -> str | None:
        """Who leads, by a lead that has not expired."""
        rows = self.stack.rows(
            "SELECT holder FROM ledger.leaders"
            " WHERE name = 'keeper' AND expires_at > clock_timestamp()"
        )
        return str(rows[0][0]) if rows else None

    def roll_to(self, tag: str, **counts: int) -> None:
        """Replace every component by another version of the image."""
        self.stack.set(TAG=tag)
        self.stack.up()
        self.stack.wait_until_healthy(**counts)
        for service in counts:
            for container in self.stack.containers(service):
                assert inspect(container)["Config"]["Image"].endswith(f":{tag}")


@pytest.fixture
def run(stack: Stack) -> Iterator[Run]:
    """The whole stack with one worker, audited by its own Postgres."""
    stack.set(WORKERS="1", WORKER_CONCURRENCY="8")
    stack.up()
    stack.wait_until_healthy(postgres=1, redis=1, worker=1, keeper=2, flower=1)
    audit.install(stack.settings.database_url.get_secret_value())
    producer = Producer(stack)
    yield Run(stack, producer)
    producer.close()


def test_whatever_dies_nothing_is_lost_and_nothing_recorded_twice(
    run: Run, image: Image, images: list[str], tmp_path: Any, measured: dict[str, Any]
) -> None:
    # Given a second version of the image, and jobs of every sort
    images.append(f"{image.name}:compose-test-following")
    (tmp_path / "Dockerfile").write_text(_FOLLOWING.format(image=image.reference))
    build(images[0], tmp_path)
    seed = int(os.environ.get("COMPOSE_TEST_SEED") or time.time())
    orders = mixed(JOBS, seed)
    parts = [orders[number::7] for number in range(7)]
    # When, under load, the workers are scaled up, everything is killed in turn, the version is
    # rolled, and the workers are scaled down
    with run.step("scale 1 to 4", parts[0]):
        run.scale(4)
    with run.step("kill redis", parts[1]):
        run.kill_store("redis")
    with run.step("kill postgres", parts[2]):
        run.kill_store("postgres")
    with run.step("kill a worker", parts[3]):
        died = run.kill_worker()
    with run.step("kill the leading keeper", parts[4]):
        run.kill_leader()
    lost = run.lost()
    with run.step("roll to another tag", parts[5]):
        run.roll_to("compose-test-following", worker=4, keeper=2, flower=1)
    with run.step("scale 4 to 1", parts[6]):
        run.scale(1)
    handed_over = run.lost() == lost
    until(lambda: all_ended(run), END, "the end of every job")
    # Then each job has ended as it must, once
    verdict = judge(run.stack, run.producer.accepted)
    measured["seed"] = seed
    measured["seconds"] = run.seconds
    measured["verdict"] = {
        name: len(value) if isinstance(value, list) else value
        for name, value in asdict(verdict).items()
    }
    measured["died_with_the_worker"] = died
    measured["enqueues_tried_again"] = run.producer.refusals
    assert verdict.is_kept, verdict
    assert verdict.accepted == JOBS
    # And it was a test: the kill met jobs that ran, the outage met producers
    assert died > 0 and lost >= died
    # And who stops in an orderly way loses nothing, but gives it back
    assert handed_over
    assert run.leader() is not None


def all_ended(run: Run) -> bool:
    states = ", ".join(f"'{state}'" for state in FINAL)
    ((left,),) = run.stack.rows(f"SELECT count(*) FROM ledger.jobs WHERE state NOT IN ({states})")
    return bool(left == 0)
