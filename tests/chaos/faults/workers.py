"""Faults of workers: killed, stopped, asked to end, an hour off."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import psycopg2

from tests.chaos import history
from tests.chaos.faults.registry import Course, begin, end, fault, signal_to
from tests.chaos.members import Member
from tests.chaos.rig import Rig, chosen

#: Makes Python bear libfaketime.
SKEW = Path(__file__).parents[1] / "skew"
#: What `kill-worker` waits for: a worker that holds at least so many jobs, at most so many seconds.
HELD, BUSY_SECONDS = 100, 4.0


@fault("worker", weight=6)
def kill_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL a worker's parent, the busiest most of the time, and count what died with it."""
    until = time.monotonic() + BUSY_SECONDS
    member = chosen(dice, rig.workers)
    while dice.random() < 0.99 and time.monotonic() < until:
        busy, held = busiest(rig)
        if busy is not None and held >= HELD:
            member = busy
            break
        yield 0.02
    if member is None or member.pid is None:
        return
    node, pid = member.node, member.pid
    leases = [lease for (lease,) in rig.query("SELECT lease FROM workers WHERE name = %s", node)]
    begin(rig, "kill-worker", node)
    member.send(signal.SIGKILL)
    yield 0.05  # what was being committed is committed, or never will be
    while (counts := census(rig, node, leases)) is None:
        yield 0.2
    unstarted, unflushed = counts
    rig.journal.note(
        "kill", worker=node, pid=pid, pool=member.pool, unstarted=unstarted, unflushed=unflushed
    )
    end(rig, "kill-worker", node)


def busiest(rig: Rig) -> tuple[Member | None, int]:
    """The running worker that holds the most jobs, and how many."""
    rows = rig.query(
        "SELECT workers.name, count(*) FROM jobs JOIN workers USING (lease)"
        " WHERE jobs.state = 'running' AND NOT workers.isolated GROUP BY 1 ORDER BY 2 DESC"
    )
    for name, held in rows:
        for member in rig.workers:
            if member.node == name and member.pid is not None:
                return member, held
    return None, 0


def census(rig: Rig, node: str, leases: list[str]) -> tuple[int, int] | None:
    """Of what a dead worker holds: how many were claimed and not started, and ended unrecorded;
    `None` while Postgres is away."""
    try:
        rows = rig.query(
            "SELECT id, attempt FROM jobs WHERE state = 'running' AND lease = ANY(%s)", leases
        )
    except psycopg2.Error:
        return None
    held = set(rows)
    started: set[tuple[str, int]] = set()
    ended: set[tuple[str, int]] = set()
    prefix = f"execution-{node.partition('@')[0]}-"
    for _, event in history.read_all(rig.history, prefix):
        if event["event"] in ("start", "end"):
            noted = started if event["event"] == "start" else ended
            noted.add((event["job"], event["attempt"]))
    return len(held - started), len(held & ended)


@fault("worker", weight=3)
def kill_child(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL a child of a prefork pool."""
    member = chosen(dice, [member for member in rig.workers if member.pool == "prefork"])
    children = rig.children_of(member) if member else []
    if not member or not children:
        return
    begin(rig, "kill-child", member.node)
    signal_to(dice.choice(children), signal.SIGKILL)
    end(rig, "kill-child", member.node)
    yield 0.0


@fault("worker", weight=3)
def pause_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGSTOP a worker for longer than its lease; then it is a zombie that writes back."""
    member = chosen(dice, rig.workers)
    if member is None:
        return
    pids = [member.pid, *rig.children_of(member)]
    begin(rig, "pause-worker", member.node)
    for pid in pids:
        signal_to(pid, signal.SIGSTOP)
    yield rig.terms.lease * dice.uniform(1.5, 2.5)
    for pid in pids:
        signal_to(pid, signal.SIGCONT)
    end(rig, "pause-worker", member.node)


@fault("worker", weight=3)
def term_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGTERM a worker at work; wait until it is gone."""
    member = chosen(dice, rig.workers)
    if member is None or member.process is None:
        return
    process, node, since = member.process, member.node, time.monotonic()
    begin(rig, "term-worker", node)
    member.send(signal.SIGTERM)
    limit = rig.terms.drain + 5
    while process.alive and time.monotonic() - since < 4 * limit:
        yield 0.05
    took = time.monotonic() - since
    rig.journal.note("drained", worker=node, seconds=took, exit_code=process.exit_code)
    if process.alive:
        rig.unexpected.append(f"{node} did not end {took:.0f} s after SIGTERM")
        process.kill()
    end(rig, "term-worker", node)


@fault("worker", weight=1)
def clock(rig: Rig, dice: random.Random) -> Course:
    """Let a worker run with a clock that is an hour off, from its next start on."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    member = chosen(dice, rig.workers)
    if library is None or member is None:
        return
    member.next_environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME": dice.choice(["+1h", "-1h"]),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": os.pathsep.join([str(SKEW), *sys.path]),
    }
    begin(rig, "clock", member.node)
    member.send(signal.SIGTERM)
    yield rig.terms.drain + 20
    end(rig, "clock", member.node)
    member.send(signal.SIGTERM)
