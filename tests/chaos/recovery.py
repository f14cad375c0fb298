"""How long a killed worker's jobs stand still: from its SIGKILL until they run again.

    python -m tests.chaos.recovery [--kills 50] [--stock-kills 10] [--json FILE] [--seed N]

A program that measures; exit 1 when a job of a worker of ours did not run again within 120 s, 130
after Ctrl-C (with what was measured until then). The default takes about an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests import leftovers
from tests.chaos import history
from tests.chaos.recovery_lanes import SETTLE, SLOTS, Lane, Ledger, Stock, running, until
from tests.chaos.recovery_report import MEASURED, Kill, lines_of, write_json
from worker.settings import Settings

#: Seconds until a killed worker is replaced: Kubernetes restarts a container at once at first.
RESTART_PAUSE = 1.0
#: Seconds that a killed job is waited for.
PATIENCE = 120.0
#: Jobs on the worker that is killed, by the name of the shape.
SHAPES = {"one job": 1, "all slots": SLOTS}
#: Fewer than the slots, so that they start at once even if one worker gets them all.
MOST_AT_ONCE = SLOTS - 1


class Field:
    """The jobs of one kill: where they run, by the lines that they write themselves.

    Args:
        lane: where they are enqueued.
        folder: where they write, and look whether they may end.
    """

    def __init__(self, lane: Lane, folder: Path) -> None:
        self._lane, self._folder, self._sent = lane, folder, 0
        folder.mkdir()

    def events(self, name: str) -> list[history.Event]:
        """The `start` or `end` lines, in their order."""
        found = [event for _, event in history.read_all(self._folder, "hold-")]
        return sorted((e for e in found if e["event"] == name), key=lambda e: float(e["t"]))

    def on(self, pid: int) -> list[str]:
        """The jobs that run in this process."""
        ended = {(event["job"], event["pid"]) for event in self.events("end")}
        started = [(event["job"], event["pid"]) for event in self.events("start")]
        return [job for job, where in started if where == pid and (job, pid) not in ended]

    def places(self) -> dict[str, set[int]]:
        """Every job, with the processes that have started it."""
        found: dict[str, set[int]] = {}
        for event in self.events("start"):
            found.setdefault(event["job"], set()).add(event["pid"])
        return found

    def add(self, count: int) -> None:
        """Enqueue so many jobs, and wait until they run."""
        self._lane.enqueue(count, self._folder)
        self._sent += count
        if not until(lambda: len(self.places()) == self._sent, 60):
            raise RuntimeError("jobs do not start")

    def trim(self, pid: int, kept: int) -> None:
        """Let the process's jobs end, all but `kept`."""
        spare = self.on(pid)[kept:]
        for job in spare:
            (self._folder / f"end-{job}").touch()
        if not until(lambda: len(self.on(pid)) <= kept, 60):
            raise RuntimeError("jobs do not end")

    def end(self) -> None:
        """Let every job end."""
        (self._folder / "end").touch()


def place(field: Field, wanted: int, victim: int, others: list[int]) -> None:
    """Enqueue jobs until the process `victim` runs `wanted`, and each of the others one."""
    deadline = time.monotonic() + PATIENCE
    while not all(field.on(pid) for pid in (victim, *others)):
        field.add(1)
    field.trim(victim, wanted)
    while True:
        for pid in others:
            field.trim(pid, 1)
        missing = wanted - len(field.on(victim))
        if not missing:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the jobs do not reach the worker that is to be killed")
        field.add(min(missing, MOST_AT_ONCE))


def kill_one(
    lane: Lane, folder: Path, shape: str, period: float, dice: random.Random, apart: float
) -> Kill:
    """Fill a worker, kill it at a random moment, replace it, and time its jobs' return.

    Args:
        lane: whose worker.
        folder: for the jobs' lines.
        shape: a key of `SHAPES`.
        period: seconds; the kill comes at a random moment in a span of that length.
        dice: the randomness.
        apart: monotonic seconds before which nobody is to be killed.
    """
    victim = dice.choice(sorted(lane.workers))
    rest, wait = dice.uniform(0, lane.cycle), dice.uniform(0, period)
    time.sleep(max(rest, apart - time.monotonic()))
    field = Field(lane, folder)
    pids = {name: worker.pid for name, worker in lane.workers.items()}
    place(field, SHAPES[shape], pids[victim], [pids[n] for n in pids if n != victim])
    time.sleep(wait)

    before = field.places()
    there = field.on(pids[victim])
    beside = [job for name in pids if name != victim for job in field.on(pids[name])]
    held = [job for job in there if len(before[job]) == 1]
    killed = time.monotonic()
    lane.workers[victim].send(signal.SIGKILL)
    lane.workers[victim].wait()
    twice = len(there) - len(held)
    kill = Kill(lane.name, shape, victim, killed, wait, twice, lane.lease_end(victim))
    time.sleep(RESTART_PAUSE)
    lane.start_worker(victim)

    def again() -> dict[str, float]:
        found: dict[str, float] = {}
        for event in field.events("start"):
            if event["t"] > killed and event["pid"] != pids[victim]:
                found.setdefault(event["job"], event["t"])
        return found

    until(lambda: again().keys() >= set(held), killed + PATIENCE - time.monotonic())
    kill.note(held, again(), lane.steps)
    after = field.places()
    kill.doubled = sum(len(after[job]) > 1 for job in {*beside} - {*there})
    field.end()
    return kill


def measure(
    kind: type[Lane], kills: int, given: argparse.Namespace, folder: Path, made: list[Kill]
) -> None:
    """Kill workers of one lane, one after the other, and add what was seen to `made`."""
    dice = random.Random(f"{given.seed} {kind.name}")
    lease = float(given.lease or Settings.model_fields["lease_seconds"].default)
    print(f"{kind.name}: starting", flush=True)
    with running(kind, folder, given.lease) as lane:
        apart = time.monotonic()
        for number in range(kills):
            shape = list(SHAPES)[number % len(SHAPES)]
            # A third of the lease: between two renewals. The same for stock: its jobs' age counts.
            kill = kill_one(lane, folder / f"jobs-{number}", shape, lease / 3, dice, apart)
            made.append(kill)
            print(f"{kind.name} {number + 1:>3}/{kills}  {kill}", flush=True)
            apart = kill.killed + lease  # leases that expire together are another scenario
            if number + 1 < kills:
                kill.settled = lane.await_idle(given.settle)


def main() -> int:
    """Measure what was asked for; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of workers of ours; default 50")
    parser.add_argument("--stock-kills", type=int, default=10, help="of stock's; default 10")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--lease", type=float, help="seconds, instead of the default")
    parser.add_argument(
        "--settle", type=float, default=SETTLE, help="seconds that a kill's traces may stay"
    )
    parser.add_argument("--logs", type=Path, help="keep the processes' output in this new folder")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C
    print(f"{MEASURED}\n\nseed {given.seed}", flush=True)
    made: list[Kill] = []
    code = 0
    with contextlib.ExitStack() as stack:
        folder = given.logs or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-ledger-recovery-"))
        )
        try:
            for kind, kills in ((Ledger, given.kills), (Stock, given.stock_kills)):
                if kills > 0:
                    own = folder.resolve() / kind.name.replace(" ", "-")
                    own.mkdir(parents=True)
                    measure(kind, kills, given, own, made)
        except KeyboardInterrupt:
            code = 130
    print("\n" + "\n".join(lines_of(made, PATIENCE)), flush=True)
    if given.json:
        write_json(given.json, made, given.seed, given.lease, complete=not code)
    if any(kill.missing for kill in made if kill.lane == Ledger.name):
        print(f"A job did not run again within {PATIENCE:.0f} s.", file=sys.stderr)
        return code or 1
    return code


if __name__ == "__main__":
    leftovers.begin()  # what it makes goes with it, however it ends
    sys.exit(main())
