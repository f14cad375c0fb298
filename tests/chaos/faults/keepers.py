"""Faults of the leading keeper."""

from __future__ import annotations

import random
import signal
import time

from tests.chaos.faults.registry import Course, begin, end, fault, met, signal_to, state_of
from tests.chaos.members import Member
from tests.chaos.rig import Rig


def _leader(rig: Rig) -> tuple[Member, int] | None:
    for (holder,) in rig.query("SELECT holder FROM ledger.leaders WHERE name = 'keeper'"):
        pid = int(holder.split(":")[1])
        for member in rig.keepers:
            if member.pid == pid:
                return member, pid
    return None


@fault("keeper")
def kill_keeper(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL the leading keeper."""
    if leader := _leader(rig):
        member, _ = leader
        process, node = member.process, member.node
        begin(rig, "kill-keeper", node)
        member.end(signal.SIGKILL, "kill-keeper")
        if process is not None and process.wait(5):
            met(rig, "kill-keeper", node, exit_code=process.exit_code)
        end(rig, "kill-keeper", node)
        yield 0.0


@fault("keeper")
def pause_keeper(rig: Rig, dice: random.Random) -> Course:
    """SIGSTOP the leading keeper for longer than its lead."""
    lasts = dice.uniform(8, 14)
    if leader := _leader(rig):
        member, pid = leader
        began = time.monotonic()
        begin(rig, "pause-keeper", member.node)
        signal_to(pid, signal.SIGSTOP)
        try:
            yield lasts
            if state_of(pid) == "T":
                met(rig, "pause-keeper", member.node, seconds=time.monotonic() - began)
        finally:
            signal_to(pid, signal.SIGCONT)
        end(rig, "pause-keeper", member.node)
