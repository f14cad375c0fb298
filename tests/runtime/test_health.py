"""What a worker takes for a fault of its own, and what not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.solo import TaskPool as Solo

from worker.errors import BrokerUnavailable, LedgerError, LedgerUnavailable, SchemaMissing
from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.ledger.database import Ledger
from worker.ledger.start import Start
from worker.ledger.writer import Writer
from worker.runtime.claims import Claims, Phase
from worker.runtime.health import Health
from worker.settings import Settings
from worker.telemetry.watchdog import Watchdog

FENCE = Fence("job", 1, "lease")


class Patient:
    """The parts of a worker process that its health looks at; its time is set by hand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.claims = Claims(lambda: 2)
        self.controller = SimpleNamespace(pool=object())
        self.drain = SimpleNamespace(is_draining=False)
        self.lease = SimpleNamespace(is_held=True)
        self.owns_process = True
        self.still = False
        self.hears_redis = True
        self.fetcher = SimpleNamespace(
            is_paused=False, trouble=None, stands_still=lambda seconds: self.still
        )
        self.writer = SimpleNamespace(is_stalled=lambda seconds: False)
        self.is_started, self.is_suspended, self.opening = True, False, Start(0)
        self.may_claim = lambda: True
        made: Any = self
        self.health = Health(made)

    def time_passes(self, seconds: float, *, renewed: bool = True) -> list[str]:
        """The faults after so long, with the lease renewed meanwhile or not."""
        self.health.watchdog._ran += seconds
        self.health._asked = self.health.watchdog.now()  # the lease's thread goes on
        if renewed:
            self.health.answered()
        if self.hears_redis:
            self.health._rung = self.health.watchdog.now()
        return self.health._faults()


@pytest.fixture
def patient(settings: Settings) -> Patient:
    return Patient(settings)


def test_a_loop_that_turns_no_more_is_a_fault(patient: Patient) -> None:
    limit = patient.health.limit
    assert patient.time_passes(limit) == []
    assert patient.time_passes(1) == [f"The event loop has not turned for over {limit:g} s."]
    patient.health.turned()
    assert patient.time_passes(0) == []


def test_a_loop_that_a_call_to_redis_may_keep_has_longer(patient: Patient) -> None:
    # Given a Redis that nobody hears, though the broker connection is not known to be lost
    patient.hears_redis = False
    limit = patient.health.call_limit
    assert patient.time_passes(limit) == []
    # Then such a call has had its time too
    assert patient.time_passes(1) == [f"The event loop has not turned for over {limit:g} s."]


@pytest.mark.parametrize("reason", ["Redis is away", "Postgres is away", "draining", "starting"])
def test_a_loop_that_stands_still_for_a_reason_is_none(patient: Patient, reason: str) -> None:
    patient.is_suspended = reason == "Redis is away"
    patient.drain.is_draining = reason == "draining"
    patient.is_started = reason != "starting"
    assert patient.time_passes(1000, renewed=reason != "Postgres is away") == []
    assert patient.health.ready() != ()


def test_a_lost_connection_is_a_fault_only_while_redis_answers_again_and_again(
    patient: Patient,
) -> None:
    # Given a worker whose broker connection has been lost for long, with Redis
    patient.is_suspended, patient.hears_redis = True, False
    assert patient.time_passes(1000) == []
    # When Redis is back, Celery has its time to connect
    patient.hears_redis = True
    patient.health._rings_since = patient.health.watchdog.now()
    limit = patient.health.call_limit
    assert patient.time_passes(limit) == []
    assert patient.health.ready() == ("The broker connection is lost; Redis answers.",)
    # Then it is stuck
    (fault,) = patient.time_passes(1)
    assert "does not come back" in fault


def test_a_job_may_hold_up_the_loop_of_a_solo_worker(patient: Patient) -> None:
    # Given a solo worker that runs a job
    patient.controller.pool = Solo.__new__(Solo)
    patient.claims.reserve([FENCE.id])
    patient.claims.grant(FENCE)
    patient.claims.move(FENCE, Phase.STARTED)
    assert patient.time_passes(1000) == []
    # When the job ends, the loop is told to have turned first
    patient.health.turned()
    patient.claims.move(FENCE, Phase.ENDED)
    assert patient.time_passes(1) == []
    # Then it is the loop's own affair again
    assert len(patient.time_passes(1000)) == 1


def test_a_fetcher_or_a_lease_without_a_round_is_a_fault(patient: Patient) -> None:
    patient.still = True
    assert "fetcher" in " ".join(patient.time_passes(1))
    patient.still = False
    patient.health.watchdog._ran += patient.health.call_limit + 1
    assert "lease's thread" in " ".join(patient.health._faults())


def test_a_dead_thread_is_a_fault_whatever_the_stores_do(patient: Patient) -> None:
    thread = threading.Thread(target=lambda: None, name="fetcher")
    thread.start()
    thread.join()
    patient.health._threads = [thread]
    assert patient.time_passes(1000, renewed=False) == ["The thread 'fetcher' has died."]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (BrokerUnavailable("redis://user:secret@host"), "Redis does not answer, or refuses."),
        (LedgerUnavailable("password of user x on host y"), "Postgres does not answer."),
        (SchemaMissing(), str(SchemaMissing())),
    ],
    ids=["Redis", "Postgres", "schema"],
)
def test_a_probe_is_told_what_is_away_and_no_address(
    patient: Patient, trouble: Exception, said: str
) -> None:
    assert patient.health.ready() == ()
    patient.fetcher.trouble = trouble
    assert patient.health.ready() == (f"Nothing is fetched: {said}",)


def test_a_fault_of_our_own_in_the_fetcher_is_told(patient: Patient) -> None:
    patient.fetcher.trouble = LedgerError("a bug")
    assert patient.health.ready() == ("Nothing is fetched: the log says why.",)


@pytest.mark.parametrize(("given", "port"), [("", None), ("0", 0), ("8080", 8080)])
def test_the_port_is_a_number_or_unset(
    monkeypatch: pytest.MonkeyPatch,
    settings_for: Callable[..., Settings],
    given: str,
    port: int | None,
) -> None:
    monkeypatch.setenv("WORKER_HEALTH_PORT", given)
    assert settings_for().health_port == port


def test_each_hindrance_is_told(patient: Patient) -> None:
    patient.lease.is_held = False
    patient.is_suspended = True
    patient.may_claim = lambda: False
    assert len(patient.health.ready()) == 3
    assert patient.health.live() == ()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.database_url.get_secret_value())
    yield ledger
    ledger.close()


def test_a_wedged_worker_does_not_renew_and_knows_whether_postgres_answers(
    patient: Patient, ledger: Ledger
) -> None:
    assert patient.health.may_renew(ledger)
    # Whatever has become of the schema since it started
    ledger.execute("UPDATE ledger.alembic_version SET version_num = '9999'")
    patient.health.watchdog._faults = ("The event loop stands still.",)
    patient.health.watchdog._ran += 1000
    assert not patient.health.may_renew(ledger)
    assert patient.health._since_answer() == 0, "Postgres answered: the fault is its own"


def test_what_is_wedged_does_not_end_a_process_that_is_somebody_elses() -> None:
    # Given a fault that lasts, in a process of which the worker is a guest
    asked = threading.Semaphore(0)

    def may_end() -> bool:
        asked.release()
        return False

    watchdog = Watchdog(lambda: ["The loop stands still."], 0.0, may_end)
    watchdog.start()
    # Then it is told, again and again, and the process goes on
    for _ in range(3):
        assert asked.acquire(timeout=30)
        assert watchdog.faults == ("The loop stands still.",)
    watchdog.stop()


def test_a_writer_that_waits_longer_for_an_answer_has_longer(ledger: Ledger) -> None:
    writer = Writer(ledger, lambda *_: None)
    writer.put(Finish(FENCE, State.SUCCEEDED, "succeeded"))
    writer._effort.times = 4
    writer._progress -= 30
    assert not writer.is_stalled(10)
    writer._progress -= 30
    assert writer.is_stalled(10)


def test_a_writer_that_was_idle_for_long_has_not_stalled(ledger: Ledger) -> None:
    writer = Writer(ledger, lambda *_: None)
    writer._progress -= 1000
    writer.put(Finish(FENCE, State.SUCCEEDED, "succeeded"))
    assert not writer.is_stalled(10)
    writer._progress -= 1000
    assert writer.is_stalled(10)
