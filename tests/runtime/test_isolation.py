"""When a worker starts a process for suspects, and with how many children."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from celery.apps import worker as celery_worker

from worker.errors import LedgerUnavailable
from worker.jobs.message import new_job
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.lease import open_lease
from worker.ledger.suspects import Wanted, has_place
from worker.runtime import isolation as isolation_module
from worker.runtime.claims import Claims
from worker.runtime.drain import GONE, ISOLATED_GONE
from worker.runtime.isolated import _name_its_words, handed_down
from worker.runtime.isolation import (
    FEWEST,
    LOOKS,
    MOST,
    TURN,
    Isolation,
    patience,
    pod_of,
)
from worker.runtime.tether import Origin, Tether
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
            lambda: "it is a test",
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

    made = worker._environment(3, 9)

    origin = Origin.read(made["WORKER_ISOLATED"])
    assert origin == Origin(os.getpid(), "pod", 9) and str(origin) == made["WORKER_ISOLATED"]
    isolated = settings_for(isolated=made["WORKER_ISOLATED"])
    assert pod_of(isolated) == "pod" and isolated.pool == "prefork"
    assert made["WORKER_CONCURRENCY"] == "3"
    left = float(made["WORKER_DRAIN_SECONDS"])
    assert left == 0 or left + GONE < drain + ISOLATED_GONE


@pytest.mark.parametrize(
    ("asks", "parent", "expected"),
    [("no", "ours", False), ("yes", "ours", True), ("no", "another", True), ("dies", "ours", True)],
)
def test_an_isolated_process_knows_who_asked_it_to_end(
    settings_for: Callable[..., Settings], ledger: Ledger, asks: str, parent: str, expected: bool
) -> None:
    # Given the pipe of a worker that asks, is somebody else by now, or has died
    tether = Tether()
    pid = os.getppid() if parent == "ours" else os.getpid()
    origin = Origin(pid, "pod", tether.theirs)
    if asks == "yes":
        tether.ask()
    if asks == "dies":
        os.close(tether._ours)
    isolated = Watch(settings_for(isolated=str(origin)), ledger, 4)

    # Then an end that it did not ask for is known
    assert isolated.was_asked(0.01) is expected
    assert Watch(settings_for(), ledger, 4).was_asked(0.01)  # an ordinary worker asks nobody
    tether.close()


def test_workers_with_the_same_host_and_pid_are_not_the_same_pod(settings: Settings) -> None:
    # As with `hostNetwork`, or after the restart of a container
    assert pod_of(settings) != pod_of(settings)


def test_what_celery_prints_at_the_end_of_an_isolated_process_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given Celery's handlers of signals, which print through this function, to its worker's output
    said: list[str] = []
    monkeypatch.setattr(celery_worker, "safe_say", lambda msg, *args: said.append(msg))
    source = inspect.getsource(celery_worker)
    assert "safe_say(f'worker: {how} shutdown (MainProcess)'" in source

    _name_its_words("isolated-7.w@host")
    celery_worker.safe_say("worker: Warm shutdown (MainProcess)")  # type: ignore[attr-defined] # Celery's own

    assert said == ["worker: Warm shutdown (isolated-7.w@host)"]


@pytest.mark.parametrize("held", [False, True])
def test_a_process_that_cannot_start_is_tried_ever_more_seldom(
    settings: Settings, ledger: Ledger, held: bool
) -> None:
    # Given a worker whose isolated process ended, without ever having held a lease, or with one
    watch = Watch(settings, ledger, 4)
    pauses = []
    for _ in range(9):
        watch._child = SimpleNamespace(returncode=1)  # type: ignore[assignment] # one that has ended
        watch._is_up = held
        watch._learn()
        pauses.append(watch._pause)

    # Then the next one is put off longer each time, to a bound; one that ran is no failed start
    assert pauses == ([0.0] * 9 if held else [5, 10, 20, 40, 80, 160, 300, 300, 300])
    Isolation._spawn(watch, 1)
    assert watch._told == (None if not held else "it is a test")


def test_an_app_with_settings_of_its_own_is_isolated_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handed_down(settings) is settings
    monkeypatch.setenv("WORKER_ISOLATED", "7:pod")
    monkeypatch.setenv("WORKER_CONCURRENCY", "3")
    monkeypatch.setenv("WORKER_DRAIN_SECONDS", "1.5")

    made = handed_down(settings)

    assert (made.isolated, made.pool, made.concurrency, made.drain_seconds) == (
        "7:pod", "prefork", 3, 1.5,
    )  # fmt: skip


def test_who_is_up_holds_a_lease(ledger: Ledger) -> None:
    assert not has_place(ledger, "pod")
    open_lease(ledger, "w", ["celery"], 600, pod="pod")
    assert not has_place(ledger, "pod")
    open_lease(ledger, "i", ["celery"], 600, pod="pod", isolated=True)
    assert has_place(ledger, "pod")
