"""`python -m tests.chaos`: break a real service in every way at hand, then judge its history."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import psycopg2

from tests import leftovers
from tests.chaos import load, options, verdict
from tests.chaos.checker import check
from tests.chaos.nemesis import Nemesis
from tests.chaos.rig import Rig, Terms, started
from worker.stack.postgres import PostgresServer

#: Seconds between two lines of progress.
PROGRESS = 10.0
#: Seconds that each worker has, when all is mended, to run a job.
PROBE = 20.0
#: Of a run that is shorter than three minutes, the part that `postgres-away` may take.
AWAY, PART_AWAY = 30.0, 1 / 6
#: How many waiting jobs there are, for the lines of progress.
_STATES = "SELECT state, count(*) FROM ledger.jobs GROUP BY state"


def main() -> int:
    """Run as asked; 0 all is well, 1 something is not, 2 asked for what cannot be."""
    asked = options.read()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if asked.judge is not None:
        return judge_again(asked)
    folder = _folder(asked.keep)
    code = 1
    try:
        code = run(asked, folder)
    except KeyboardInterrupt:
        print("Stopped; nothing was judged.", file=sys.stderr)
        code = 130
    except load.Stuck as exc:
        print(exc, file=sys.stderr)
    except Exception:
        traceback.print_exc()
    if asked.keep is None and code in (0, 130):
        shutil.rmtree(folder, ignore_errors=True)
        return code
    if asked.keep is None:
        folder = folder.rename(KEPT / folder.name)
    again = f"python -m tests.chaos --judge {folder}"
    print(f"Everything is kept in {folder}; judge it again: {again}", file=sys.stderr)
    return code


def run(asked: argparse.Namespace, folder: Path) -> int:
    """Start, measure, break, settle, judge."""
    say = _Speaker()
    terms = Terms(
        lease=asked.lease, threads=(asked.threads,) * asked.threaded,
        prefork=(4,) * asked.prefork, distance=asked.distance / 1000,
        away=asked.away or min(AWAY, asked.minutes * 60 * PART_AWAY),
    )  # fmt: skip
    say(f"seed {asked.seed}, {asked.minutes:g} minutes, {', '.join(asked.nemesis)}")
    for name, reason in asked.left_out.items():
        say(f"{name} is left out: {reason}")
    facts = verdict.begun(asked, terms)
    try:
        with started(folder, terms, asked.seed) as rig:
            _run(rig, asked, facts, say)
            say("judging")
            facts["postgres"] = rig.postgres.data.name
            report = check(rig.history, rig.postgres.url)
    finally:
        verdict.write(folder / verdict.FACTS, facts)
    return verdict.told(asked, folder, facts, report)


def _run(rig: Rig, asked: argparse.Namespace, facts: dict[str, Any], say: _Speaker) -> None:
    """All but the judgement; `facts` gets what is measured, as soon as it is."""
    drain_rate = load.drain_rate(rig, asked.measured, asked.mix, asked.seed)
    rate = asked.rate or max(load.LEAST_RATE, load.LOAD * drain_rate)
    facts |= {"drain_rate": round(drain_rate), "target_rate": round(rate)}
    say(f"drained {drain_rate:.0f} jobs/s of the mix; enqueueing {rate:.0f} jobs/s")
    load.produce(rig, rate, asked.mix)
    nemesis = Nemesis(rig, asked.seed, asked.nemesis, asked.every)
    facts["broken_seconds"] = _break(rig, nemesis, asked, say)
    facts["schedule"] = nemesis.schedule
    calm = time.monotonic()
    rig.heal()
    rig.stop_producers()
    rig.journal.note("settling")
    known = len(rig.unexpected)
    rig.probe_each_worker(PROBE)
    facts["silent"] = rig.unexpected[known:]
    load.settle(rig, lambda: say.progress(rig))
    facts["settle_seconds"] = round(time.monotonic() - calm, 1)
    rig.stop()
    facts |= {"met": dict(rig.met), "unexpected": list(rig.unexpected)}


def judge_again(asked: argparse.Namespace) -> int:
    """Judge the history of a run whose folder was kept."""
    folder = asked.judge.resolve()
    try:
        facts = json.loads((folder / verdict.FACTS).read_text())
    except (OSError, ValueError) as exc:
        print(f"There is no run to judge in {folder}: {exc}", file=sys.stderr)
        return 2
    server = PostgresServer(folder / facts.get("postgres", "postgres"))
    server.start()
    try:
        report = check(folder / "history", server.url)
    finally:
        server.stop()
    return verdict.told(asked, folder, facts, report)


def _break(rig: Rig, nemesis: Nemesis, asked: argparse.Namespace, say: _Speaker) -> float:
    """Let the nemesis at it as long as was asked, then let it end what it began."""
    began = time.monotonic()
    while time.monotonic() - began < asked.minutes * 60:
        if asked.until_met and not nemesis.unmet():
            break
        rig.look_after()
        nemesis.tick()
        say.progress(rig)
        time.sleep(0.01)
    while not nemesis.is_idle:
        rig.look_after()
        nemesis.tick(begin=False)
        time.sleep(0.01)
    return round(time.monotonic() - began, 1)


class _Speaker:
    """Progress for people, on stderr."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def progress(self, rig: Rig) -> None:
        """Say where things stand, now and then."""
        if time.monotonic() - self._said < PROGRESS:
            return
        self._said = time.monotonic()
        try:
            rows = dict(rig.query(_STATES))
        except psycopg2.Error:
            self("Postgres is away")
            return
        waiting = sum(rows.get(state, 0) for state in ("scheduled", "queued", "running"))
        self(
            f"{sum(rows.values())} jobs, {waiting} have not ended;"
            f" {sum(rig.met.values())} faults met, of {len(rig.met)} kinds"
        )


#: Where a run that shows something is kept: not among what goes with the program.
KEPT = Path(tempfile.gettempdir())


def _folder(keep: Path | None) -> Path:
    if keep is not None:
        keep.mkdir(parents=True)
        return keep.resolve()
    # Among what goes with the program, until it is known whether it shows something.
    made = Path(tempfile.mkdtemp(prefix="celery-ledger-chaos-"))
    made.chmod(0o755)  # Postgres runs as nobody when this runs as root
    return made


if __name__ == "__main__":
    leftovers.begin()  # what it makes goes with it, however it ends
    sys.exit(main())
