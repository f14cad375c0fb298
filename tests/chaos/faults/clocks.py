"""A worker whose wall clock is an hour off."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import psycopg2

from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.members import Member
from tests.chaos.rig import Rig
from tests.chaos.tails import Tail

#: Makes Python bear libfaketime.
SKEW = Path(__file__).parents[1] / "skew"
#: Seconds off, and how far a start must be off to be its proof.
HOUR, OFF = "1h", 3000.0
#: Seconds in which a skewed start has its lease, and seconds that it works from then on.
LEASED, WORKS = 60.0, 20.0


def _library() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def _lack() -> str | None:
    if _library() is not None:
        return None
    return "a worker's clock is put off by libfaketime, which is not here: apt-get install faketime"


@fault("clock", weight=1, lack=_lack)
def clock(rig: Rig, dice: random.Random) -> Course:
    """Let a worker run with a clock that is an hour off, from its next start on."""
    sign, draw = dice.choice("+-"), dice.random()
    library, workers = _library(), rig.at_work()
    if library is None or not workers:
        return
    member, _ = workers[int(draw * len(workers))]
    with rig.striking(member):
        begin(rig, "clock", member.node, off=f"{sign}{HOUR}")
        tail = Tail(rig.history, f"execution-{member.name}-")
        member.extra = {
            "LD_PRELOAD": str(library),
            "FAKETIME": f"{sign}{HOUR}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "CHAOS_SKEWED": "1",
            "PYTHONPATH": os.pathsep.join([str(SKEW), *sys.path]),
        }
        try:
            member.end(signal.SIGTERM, "clock")
            yield from _skewed(rig, member, tail)
        finally:
            member.extra = {}
        while rig.in_hand[member.name] > 1:  # it holds the GIL: it could not drain
            yield 0.2
        member.end(signal.SIGTERM, "clock")
        end(rig, "clock", member.node)


def _skewed(rig: Rig, member: Member, tail: Tail) -> Course:
    """Wait for a skewed start's lease, and let it work for a while."""
    before, node = time.monotonic() + LEASED, member.node
    while not (member.node != node and _has_lease(rig, member)):
        if time.monotonic() > before:
            return
        yield 0.2
    until, is_met = time.monotonic() + WORKS, False
    while time.monotonic() < until:
        yield 0.5
        for file, event in tail.new('"wall"'):
            off = event["wall"] - (event["t"] + time.time() - time.monotonic())
            if abs(off) > OFF and not is_met:
                is_met = True
                met(rig, "clock", member.node, file=file, run=event["run"], off=round(off))


def _has_lease(rig: Rig, member: Member) -> bool:
    try:
        return member.node in rig.leased()
    except psycopg2.Error:
        return False
