"""Faults of workers that live on: stopped, or asked to end."""

from __future__ import annotations

import random
import signal
import time

from tests.chaos.faults.registry import Course, begin, end, fault, met, signal_to, state_of
from tests.chaos.rig import Rig
from tests.chaos.watch import Ending

#: Seconds that a worker is waited for that holds jobs.
HELD_SECONDS = 4.0
#: Seconds beyond its drain that a worker may take to end.
LATE = 5.0


@fault("worker", weight=3)
def pause_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGSTOP a worker for longer than its lease; then it is a zombie that writes back."""
    lasts, draw = rig.terms.lease * dice.uniform(1.5, 2.5), dice.random()
    workers = rig.at_work()
    if not workers:
        return
    member, held = workers[int(draw * len(workers))]
    pids = [pid for pid in (member.pid, *member.children) if pid is not None]
    with rig.striking(member):
        begin(rig, "pause-worker", member.node)
        for pid in pids:
            signal_to(pid, signal.SIGSTOP)
        try:
            yield lasts
            if pids and all(state_of(pid) == "T" for pid in pids):
                met(rig, "pause-worker", member.node, seconds=lasts, held=held)
        finally:
            for pid in pids:
                signal_to(pid, signal.SIGCONT)
        end(rig, "pause-worker", member.node)


@fault("worker", weight=3)
def term_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGTERM a worker that runs jobs; wait until it is gone."""
    draw, until = dice.random(), time.monotonic() + HELD_SECONDS
    while not (workers := [(m, held) for m, held in rig.at_work() if held]):
        if time.monotonic() > until:
            return
        yield 0.05
    member, held = workers[int(draw * len(workers))]
    process, node, since = member.process, member.node, time.monotonic()
    if process is None or process.pid is None:
        return
    ending = Ending(process.pid)
    with rig.striking(member):
        begin(rig, "term-worker", node)
        member.end(signal.SIGTERM, "term-worker")
        limit = rig.terms.drain + LATE
        while process.alive and time.monotonic() - since < 4 * limit:
            yield 0.05
        # The nemesis may have restarted a store meanwhile, and not looked.
        took = (time.monotonic() if process.alive else ending.time()) - since
        code = process.exit_code
        rig.journal.note("drained", worker=node, seconds=took, exit_code=code, held=held)
        if took > limit:
            rig.unexpected.append(f"{node} took {took:.1f} s to end after SIGTERM")
            process.kill()
        elif code == 0:
            met(rig, "term-worker", node, held=held, seconds=took)
        end(rig, "term-worker", node)
