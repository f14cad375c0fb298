"""Faults of the leading keeper."""

from __future__ import annotations

import random
import signal
from contextlib import suppress

import psycopg2

from tests.chaos.faults.registry import Course, begin, end, fault, signal_to
from tests.chaos.members import Member
from tests.chaos.rig import Rig


def _leader(rig: Rig) -> tuple[Member, int] | None:
    with suppress(psycopg2.Error):
        for (holder,) in rig.query("SELECT holder FROM leaders WHERE name = 'keeper'"):
            pid = int(holder.split(":")[1])
            for member in rig.keepers:
                if member.pid == pid:
                    return member, pid
    return None


@fault("keeper")
def kill_keeper(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL the leading keeper."""
    if leader := _leader(rig):
        begin(rig, "kill-keeper", leader[0].node)
        leader[0].send(signal.SIGKILL)
        end(rig, "kill-keeper", leader[0].node)
        yield 0.0


@fault("keeper")
def pause_keeper(rig: Rig, dice: random.Random) -> Course:
    """SIGSTOP the leading keeper for longer than its lead."""
    if leader := _leader(rig):
        member, pid = leader
        begin(rig, "pause-keeper", member.node)
        signal_to(pid, signal.SIGSTOP)
        yield dice.uniform(8, 14)
        signal_to(pid, signal.SIGCONT)
        end(rig, "pause-keeper", member.node)
