"""When a worker starts a process for suspects, and with how many children."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from worker.errors import LedgerUnavailable
from worker.jobs.message import new_job
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.lease import open_lease
from worker.ledger.suspects import Wanted
from worker.runtime import isolation as isolation_module
from worker.runtime.claims import Claims
from worker.runtime.drain import GONE, ISOLATED_GONE
from worker.runtime.isolation import (
    FEWEST,
    LOOKS,
    MOST,
    TURN,
    Isolation,
    Origin,
    patience,
    pod_of,
)
from worker.settings import Settings


class Watch(Isolation):
    """A worker's watch, driven by hand, that notes what it would start."""

    def __init__(self, settings: Settings, ledger: Ledger, slots: int) -> None:
        self.started: list[int] = []
        lease = open_lease(ledger, "w", ["celery"], 600)
        super().__init__(
            ledger,
            lambda: ["celery"],
            Claims(lambda: slots),
            lambda: lease,
            settings,
            "pod",
        )

    def _spawn(self, children: int) -> None:
        self.started.append(children)

    def looks(self, times: int) -> list[int]:
        for _ in range(times):
            self._look()
        return self.started


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings.database_url.get_secret_value())
    yield made
    made.close()


def suspects(ledger: Ledger, count: int, level: int = 1) -> None:
    enqueue(ledger, [new_job("test.add", [1, 1]) for _ in range(count)])
    ledger.execute("UPDATE ledger.jobs SET suspicion = :level", {"level": level})


@pytest.mark.parametrize(
    ("slots", "waiting", "children"),
    [(16, 12, 12), (16, 300, 16), (16, 1, FEWEST), (2, 5, 2), (200, 300, MOST), (200, 9, 9)],
)
def test_a_process_gets_as_many_children_as_suspects_want_and_the_worker_has(
    settings: Settings, ledger: Ledger, slots: int, waiting: int, children: int
) -> None:
    watch = Watch(settings, ledger, slots)
    suspects(ledger, waiting)

    assert watch.looks(LOOKS - 1) == []
    assert watch.looks(1) == [children]


def test_it_takes_looks_in_a_row(settings: Settings, ledger: Ledger) -> None:
    # Given a worker that is late
    watch = Watch(settings, ledger, 4)
    late = open_lease(ledger, "late", ["celery"], 600)
    job = new_job("test.add", [1, 1])
    enqueue(ledger, [job])
    assert claim(ledger, late, [job.id])

    def renewed(seconds: int) -> None:
        ledger.execute(
            "UPDATE ledger.workers SET renewed_at = clock_timestamp() - :ago * interval '1 s',"
            " expires_at = clock_timestamp() + (600 - :ago) * interval '1 s'"
            " WHERE name = 'late'",
            {"ago": seconds},
        )

    # When it renews before the last of these looks, nothing is started
    renewed(400)
    assert watch.looks(LOOKS - 1) == []
    renewed(0)
    assert watch.looks(1) == []

    # And when it does not, a process is, before the lease is over
    renewed(400)
    assert watch.looks(LOOKS) == [FEWEST]


def test_an_outage_between_two_looks_begins_them_anew(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a watch that has seen suspects, and then Postgres away
    watch = Watch(settings, ledger, 4)
    suspects(ledger, 1)
    watch._looks = LOOKS - 1

    def away(*args: object) -> Wanted:
        watch._stop.set()
        raise LedgerUnavailable("Postgres is not available.")

    monkeypatch.setattr(isolation_module, "wanted", away)
    monkeypatch.setattr(isolation_module, "LOOK", 0.01)
    watch._watch()
    monkeypatch.undo()

    # Then what it saw before counts no more
    assert watch.looks(LOOKS - 1) == []
    assert watch.looks(1) == [FEWEST]


@pytest.mark.parametrize(
    ("lack", "turns"),
    [
        (Wanted(slots=12, alone=0, rank=0), 0),
        (Wanted(slots=12, alone=0, rank=1), 1),
        (Wanted(slots=12, alone=0, rank=3), 3),
        (Wanted(slots=60, alone=0, rank=3), 0),  # four processes of sixteen
        (Wanted(slots=0, alone=2, rank=1), 0),
        (Wanted(slots=0, alone=2, rank=2), 1),
        (Wanted(slots=1, alone=1, rank=5), 2),
    ],
)
def test_only_as_many_workers_start_at_once_as_processes_lack(lack: Wanted, turns: int) -> None:
    assert patience(lack, 16) == turns * TURN


def test_a_worker_with_more_slots_than_a_process_has_children_needs_others_beside_it() -> None:
    assert patience(Wanted(slots=4 * MOST, alone=0, rank=3), 200) == 0
    assert patience(Wanted(slots=3 * MOST, alone=0, rank=3), 200) == TURN


@pytest.mark.parametrize("drain", [0.0, 1.0, 30.0])
def test_an_isolated_process_knows_its_worker_and_is_gone_before_it_is_killed(
    settings_for: Callable[..., Settings], ledger: Ledger, drain: float
) -> None:
    worker = Watch(settings_for(drain_seconds=drain), ledger, 4)

    made = worker._environment(3)

    origin = Origin.read(made["WORKER_ISOLATED"])
    assert origin == Origin(os.getpid(), "pod") and str(origin) == made["WORKER_ISOLATED"]
    isolated = settings_for(isolated=made["WORKER_ISOLATED"])
    assert pod_of(isolated) == "pod" and isolated.pool == "prefork"
    assert made["WORKER_CONCURRENCY"] == "3"
    left = float(made["WORKER_DRAIN_SECONDS"])
    assert left == 0 or left + GONE < drain + ISOLATED_GONE


def test_workers_with_the_same_host_and_pid_are_not_the_same_pod(settings: Settings) -> None:
    # As with `hostNetwork`, or after the restart of a container
    assert pod_of(settings) != pod_of(settings)
