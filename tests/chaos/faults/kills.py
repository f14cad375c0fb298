"""Faults that kill: a worker whole, or a child of its pool."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import psycopg2

from tests.chaos.faults.registry import Course, NotNow, begin, end, fault, is_gone, met, signal_to
from tests.chaos.members import Member
from tests.chaos.rig import Rig
from tests.chaos.tails import moments, runs_something

#: What an aimed `kill-worker` waits for: a worker that holds so many jobs. Above its 200 slots are
#: those that have ended and are not flushed. After so many seconds it takes one with fewer, and
#: after so many again it comes back later, or takes anyone if it has never struck.
BUSY = {"threads": (240, 80), "prefork": (2, 1)}
BUSY_SECONDS = 6.0
#: Seconds that `kill-child` waits for a child that runs a job.
CHILD_SECONDS = 4.0
#: Of a hundred kills of a worker, how many wait for such a moment; and how many are of prefork.
AIMED, PREFORK = 85, 34
#: Seconds between two looks.
LOOK = 0.04
#: Seconds in which a killed process is gone.
GONE = 10.0

# What a lease held when its worker was killed: it runs still, or its attempt was lost since.
_HELD = """
    WITH leases AS (
        SELECT DISTINCT lease FROM audit_leases
        WHERE what = 'open' AND name = %s AND NOT isolated)
    SELECT id, attempt FROM ledger.jobs JOIN leases USING (lease) WHERE state = 'running'
    UNION
    SELECT job_id, number FROM ledger.attempts JOIN leases USING (lease)
    WHERE outcome = 'lost' AND ended_at >= to_timestamp(%s)
"""


@fault("worker", weight=6)
def kill_worker(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL a worker's parent, most often a busy one, and count what died with it."""
    prefers, is_aimed = dice.randrange(100) < PREFORK, dice.randrange(100) < AIMED
    pools = sorted({member.pool for member in rig.workers})
    pool = "prefork" if prefers and "prefork" in pools else pools[-1]
    draw, began = dice.random(), time.monotonic()
    while not (members := _busy(rig, pool, began) if is_aimed else _at_random(rig, pool)):
        yield LOOK
    member = members[int(draw * len(members))]
    told = {"aimed": is_aimed, "waited": round(time.monotonic() - began, 2)}
    with rig.striking(member):
        yield from _kill(rig, member, told)


def _at_random(rig: Rig, pool: str) -> list[Member]:
    if members := [member for member in rig.free() if member.pool == pool]:
        return members
    raise NotNow


def _busy(rig: Rig, pool: str, since: float) -> list[Member]:
    """The workers of a pool that are as busy as is asked for, by who waits `since` so long."""
    waited = time.monotonic() - since
    if waited > 2 * BUSY_SECONDS:
        if not rig.met["kill-worker"]:
            return _at_random(rig, pool)
        raise NotNow
    wanted = BUSY[pool][waited > BUSY_SECONDS]
    try:
        workers = rig.at_work()
    except psycopg2.Error:
        raise NotNow from None  # who is busy is known when Postgres is back
    return [member for member, held in workers if member.pool == pool and held >= wanted]


def _kill(rig: Rig, member: Member, told: dict[str, Any]) -> Course:
    process, node, pid = member.process, member.node, member.pid
    if process is None or pid is None:
        return
    files = [rig.history / f"{member.prefix}{own}.jsonl" for own in (pid, *member.children)]
    begin(rig, "kill-worker", node)
    at, until = time.time(), time.monotonic() + GONE
    member.end(signal.SIGKILL, "kill-worker")
    yield 0.05  # what was being committed is committed, or never will be
    while process.alive and time.monotonic() < until:
        yield 0.05
    while (held := _held(rig, node, at)) is None:
        yield 0.2
    started, ended = moments(files)
    rig.journal.note(
        "kill", worker=node, pid=pid, pool=member.pool, held=len(held), **told,
        unstarted=len(held - started), unflushed=len(held & ended),
    )  # fmt: skip
    if process.exit_code == -signal.SIGKILL and held:
        met(rig, "kill-worker", node, held=len(held), exit_code=process.exit_code)
    end(rig, "kill-worker", node)


def _held(rig: Rig, node: str, at: float) -> set[tuple[str, int]] | None:
    """What a worker held, killed at `at` in Unix seconds; `None` while Postgres is away."""
    try:
        return set(rig.query(_HELD, node, at))
    except psycopg2.Error:
        return None


@fault("worker", weight=3)
def kill_child(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL a child of a prefork pool, in the midst of a job."""
    draw, until = dice.random(), time.monotonic() + CHILD_SECONDS
    while not (running := _running_children(rig)) and time.monotonic() < until:
        yield LOOK
    if not running:
        return
    member, child = running[int(draw * len(running))]
    begin(rig, "kill-child", member.node)
    signal_to(child, signal.SIGKILL)
    until = time.monotonic() + GONE
    while not is_gone(child) and time.monotonic() < until:
        yield 0.02
    if is_gone(child):
        met(rig, "kill-child", member.node, pid=child)
    end(rig, "kill-child", member.node)


def _running_children(rig: Rig) -> list[tuple[Member, int]]:
    return [
        (member, child)
        for member in rig.free()
        if member.pool == "prefork"
        for child in sorted(member.children)
        if runs_something(rig.history / f"{member.prefix}{child}.jsonl")
    ]
