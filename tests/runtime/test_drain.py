"""The end of a worker: what its drain waits for, what bounds it, and whose process it ends."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import WorkerShutdown, WorkerTerminate

from tests.ledger import given
from tests.processes import Processes
from tests.runtime.test_lease import Holder
from worker.jobs.job import Claim, Fence, Finish, Message
from worker.ledger.database import Ledger
from worker.runtime.claims import Claims, Phase
from worker.runtime.clock import LeaseClock, now
from worker.runtime.drain import GONE, UNSTARTED_SECONDS, Drain
from worker.runtime.ending import _notice_faults
from worker.runtime.process import Process
from worker.settings import Settings


def test_a_job_whose_child_lives_may_end_though_its_start_was_never_read() -> None:
    # Given a job that was handed to a prefork pool a while ago, and no word of its start
    with subprocess.Popen(["sleep", "600"]) as child:
        pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[SimpleNamespace(pid=child.pid)]))
        claims, fence = Claims(lambda: 1), Fence("a", 1, "l")
        claims.grant(fence)
        claims.move(fence, Phase.HANDED)
        claims.entries()[0].since -= UNSTARTED_SECONDS + 1
        process: Any = SimpleNamespace(claims=claims, controller=SimpleNamespace(pool=pool))
        drain = Drain(process)

        # Then waiting helps for as long as the child lives
        assert drain._anything_can_end()
        child.kill()
        given.until(lambda: not drain._anything_can_end())


@pytest.mark.parametrize(
    ("children", "seen", "meanwhile"),
    [
        ([], Phase.HANDED, None),
        ([], Phase.HANDED, Phase.STARTED),
        ([1], Phase.CLAIMED, None),
        ([1], Phase.CLAIMED, Phase.HANDED),
    ],
    ids=["cancelled", "taken up by a thread", "never handed over", "handed to a child"],
)
def test_what_lies_about_is_given_back_unless_it_goes_on_just_then(
    children: list[int], seen: Phase, meanwhile: Phase | None
) -> None:
    # Given a job that has gone no further for a while
    claims, fence = Claims(lambda: 1), Fence("a", 1, "l")
    ends: list[Finish] = []
    claims.grant(fence)
    claims.move(fence, seen)
    claims.entries()[0].since -= UNSTARTED_SECONDS + 1
    clock = LeaseClock(claims.may_run)
    clock.extend("l", now() + 60)
    pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[SimpleNamespace(pid=p) for p in children]))
    process: Any = SimpleNamespace(
        claims=claims,
        controller=SimpleNamespace(pool=pool),
        writer=SimpleNamespace(put=ends.append),
        _loop_thread=0,
    )
    process.finish = partial(Process.finish, process)
    process.give_back = partial(Process.give_back, process)
    drain = Drain(process)

    # When the drain looks, and it goes on between the drain's look and its word
    if meanwhile is not None:
        looked = [replace(entry) for entry in claims.entries()]
        claims.move(fence, meanwhile)
        claims.entries = lambda: looked  # type: ignore[method-assign] # as the drain saw them
    drain._give_back_unstarted()

    # Then it is one or the other: given back, and never started here, or left to whoever runs it
    assert [end.outcome for end in ends] == (["released"] if meanwhile is None else [])
    assert clock.may_start(fence) is (meanwhile is not None)


def test_what_is_claimed_while_the_worker_drains_is_given_back_at_once() -> None:
    # Given claims that reach the event loop when the drain has begun
    fences = [Fence(name, 1, "l") for name in "abc"]
    given_back: list[Fence] = []
    process: Any = SimpleNamespace(
        granted=deque(Claim(fence, "t", "q", Message("{}", b"")) for fence in fences),
        health=SimpleNamespace(turned=lambda: None),
        drain=SimpleNamespace(is_draining=True),
        receive=lambda claim: pytest.fail("it was started"),
        give_back=lambda fence, reason: given_back.append(fence),
    )
    # Then none is started
    Process.hand_over(process)
    assert given_back == fences
    assert not process.granted


_QUIT = """
import time
from types import SimpleNamespace
from worker.runtime.drain import Drain
settings = SimpleNamespace(drain_seconds=600.0)
drain = Drain(SimpleNamespace(owns_process=True, settings=settings))
drain.begin(at_once=False)
drain.begin(at_once=True)
time.sleep(600)  # nothing else ends it: its threads do not run
"""


def test_sigquit_after_sigterm_shortens_the_last_bound_too(processes: Processes) -> None:
    process = processes([sys.executable, "-c", _QUIT])
    assert process.wait(GONE + given.PATIENCE) == 1
    assert "Timeout (" in process.output  # it says where it hung


_INTERRUPTED = """
import os
import signal
from types import SimpleNamespace
from celery import signals
from celery.apps.worker import install_worker_term_handler
from tests.acceptance.shop import app
install_worker_term_handler(SimpleNamespace(hostname="w"))
# Here another SIGTERM may find the one before: in the midst of its dispatch.
with signals.worker_shutting_down.lock:
    os.kill(os.getpid(), signal.SIGTERM)
print("dispatched")
"""


def test_a_second_sigterm_amid_the_first_does_not_wait_for_it(processes: Processes) -> None:
    process = processes([sys.executable, "-c", _INTERRUPTED])
    process.wait_for_line("dispatched")
    assert process.wait() == 0


_GUEST = """
import threading
import time
from tests.acceptance.shop import app

# A worker in a thread of its host waits for a Postgres that is away
worker = app.WorkController(pool="solo", concurrency=1, hostname="guest@here")
thread = threading.Thread(target=worker.start, daemon=True)
thread.start()
while not app.ledger.process.opening.waits_for:
    time.sleep(0.01)
# and is told to end
worker.stop()
time.sleep(4)
print("The host lives.", flush=True)
"""


def test_a_worker_that_is_a_guest_does_not_end_its_host(processes: Processes) -> None:
    process = processes(
        [sys.executable, "-c", _GUEST],
        {"DATABASE_URL": "postgresql://nobody:x@127.0.0.1:1/nothing"},
    )
    process.wait_for_line("The host lives.")


_LODGER = """
import threading, time
from celery.contrib.testing.worker import start_worker
from tests.acceptance.shop import app, order

with start_worker(app, pool="solo", perform_ping_check=False):
    assert order.delay({log!r}).get(timeout=30) == "ordered"
    health = app.ledger.process.health
app.ledger.process.drain.join()
assert health.watchdog.wait(30)

def left():
    name = app.ledger.process.controller.hostname
    known = app.ledger.ledger.execute(
        "SELECT application_name FROM pg_stat_activity WHERE starts_with(application_name, :name)",
        {{"name": name}},
    )
    threads = {{thread.name for thread in threading.enumerate()}}
    return [row[0] for row in known] + sorted(threads & {{"ringer", "announcer", "lease"}})

deadline = time.monotonic() + 30
while left():
    assert time.monotonic() < deadline, left()
    time.sleep(0.05)
print("The host lives.", flush=True)
"""


def test_nothing_of_a_guest_is_left_after_its_drain(processes: Processes, tmp_path: Any) -> None:
    process = processes([sys.executable, "-c", _LODGER.format(log=str(tmp_path / "ran.log"))])
    process.wait_for_line("The host lives.", 60)
    assert process.wait() == 0


@pytest.fixture
def ledger(settings: Settings) -> Any:
    ledger = Ledger(settings.database_url.get_secret_value())
    yield ledger
    ledger.close()


def test_a_renewal_that_meets_its_lease_closed_opens_no_other(ledger: Ledger) -> None:
    # Given a worker that has ended its lease while a renewal was under way
    holder = Holder(ledger)
    holder.lease.close()

    # When the renewal finds it gone
    holder.lease._renew()

    # Then there is none
    assert ledger.execute("SELECT lease FROM ledger.workers") == []


@pytest.mark.parametrize(
    ("raised", "is_fault"),
    [
        (WorkerShutdown(0), False),
        (WorkerShutdown(70), False),
        (WorkerTerminate(1), False),
        (SystemExit(0), False),
        (SystemExit(None), False),
        (SystemExit(3), True),
        (SystemExit("a word"), True),
        (KeyboardInterrupt(), False),  # Python's own Ctrl-C: no handler of Celery's is here
        (ValueError("broken"), True),
        (MemoryError(), True),
        (GeneratorExit(), True),
    ],
    ids=repr,
)
def test_a_fault_is_what_ends_a_worker_and_was_not_asked_for(
    raised: BaseException, is_fault: bool
) -> None:
    # Given a worker whose event loop ends by it
    def loop() -> None:
        raise raised

    drain = Drain(SimpleNamespace())  # type: ignore[arg-type] # it is asked for nothing
    process: Any = SimpleNamespace(is_started=True, drain=drain)
    controller = SimpleNamespace(blueprint=SimpleNamespace(start=loop))
    _notice_faults(controller, lambda: process)

    # When it does
    with pytest.raises(type(raised)):
        controller.blueprint.start()

    # Then it is told apart
    assert (drain._fault is not None) is is_fault
