"""A failover: the primary dies, and its standby, which lags, is promoted."""

from __future__ import annotations

import random
import shutil
import threading
import time

from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.rig import Rig
from tests.standby import ask

#: Seconds in which the standby has caught up with its primary, and those that it then lags.
CAUGHT_UP, LAGS = 60.0, (2.0, 5.0)

_SYNCHRONOUS = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
_LAG = """
    SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint
"""


@fault("postgres", weight=1)
def promote_standby(rig: Rig, dice: random.Random) -> Course:
    """Let a synchronous standby fall behind in what it replays, kill the primary, promote it.

    What was acknowledged is on the standby's disk, and nothing of it may be missing. What was on
    its way is lost or not, and clients do not know.
    """
    lags, primary, standby = dice.uniform(*LAGS), rig.postgres, rig.new_standby()
    begin(rig, "promote-standby", "postgres")
    copying = threading.Thread(target=standby.copy)
    copying.start()
    while copying.is_alive():
        yield 0.1
    try:
        standby.start()
        ask(primary.url, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        ask(primary.url, "SELECT pg_reload_conf()")
        until = time.monotonic() + CAUGHT_UP
        while not ask(primary.url, _SYNCHRONOUS):
            if time.monotonic() > until:
                return
            yield 0.1
        ask(standby.url, "SELECT pg_wal_replay_pause()")
        yield lags
        ((lag,),) = ask(standby.url, _LAG)
        rig.journal.note("outage", store="postgres")
        primary.kill()
        standby.promote()
        rig.follow(standby)
        if lag:
            met(rig, "promote-standby", "postgres", lagged_bytes=lag)
        rig.journal.note("back", store="postgres")
        shutil.rmtree(primary.data, ignore_errors=True)
    finally:
        if rig.postgres is primary and primary.alive:  # it came to nothing
            ask(primary.url, "ALTER SYSTEM RESET synchronous_standby_names")
            ask(primary.url, "SELECT pg_reload_conf()")
            standby.kill()
    end(rig, "promote-standby", "postgres")
