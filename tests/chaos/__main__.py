"""`python -m tests.chaos`: break a real service in every way at hand, then judge its history."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from tests.chaos import kinds
from tests.chaos.checker import check
from tests.chaos.faults import FAULTS
from tests.chaos.history import Journal
from tests.chaos.nemesis import Nemesis
from tests.chaos.report import Report
from tests.chaos.rig import Rig, Terms, started
from worker.client import Client
from worker.jobs.message import new_job
from worker.settings import Settings

#: Jobs by which the drain rate is measured, before anything is broken.
MEASURED = 6000
#: Jobs a second that are accepted at the least.
LEAST_RATE = 300.0
#: The part of the drain rate at which jobs are enqueued; half is what the proof asks for.
LOAD = 0.55
#: Seconds that what was accepted is given to end, once nothing breaks any more.
SETTLE = 600.0
#: Seconds between two lines of progress.
PROGRESS = 10.0
UNFINISHED = "SELECT count(*) FROM jobs WHERE state IN ('scheduled', 'queued', 'running')"


def main() -> int:
    """Run as asked; 0 nothing was violated, 1 something was, 2 asked for what cannot be."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _folder(options.keep) as folder:
            return run(options, folder)
    except KeyboardInterrupt:
        print("Stopped; nothing was judged.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, folder: Path) -> int:
    """Start, measure, break, settle, judge."""
    say = _Speaker()
    terms = Terms(
        lease=options.lease, threads=(options.threads,) * 2, prefork=(4,) * options.prefork,
        away=min(30.0, options.minutes * 60 / 6), distance=options.distance / 1000,
    )  # fmt: skip
    say(f"seed {options.seed}, {options.minutes:g} minutes, {', '.join(options.nemesis)}")
    with started(folder, terms, options.seed) as rig:
        _await_workers(rig)
        drain_rate = _drain_rate(rig, options)
        rate = options.rate or max(LEAST_RATE, LOAD * drain_rate)
        say(f"drained {drain_rate:.0f} jobs/s of the mix; enqueueing {rate:.0f} jobs/s")
        _produce(rig, rate, options.mix)
        nemesis = Nemesis(rig, options.seed, options.nemesis, options.every)
        _break(rig, nemesis, options.minutes * 60, say)
        settled = _settle(rig, nemesis, say)
        rig.stop()
        report = check(rig.history, rig.postgres.url)
        unexpected = list(rig.unexpected)
    facts = {
        "seed": options.seed, "minutes": options.minutes, "nemesis": options.nemesis,
        "lease_seconds": terms.lease, "distance_ms": options.distance,
        "drain_rate": round(drain_rate), "enqueue_rate": round(rate),
        "settle_seconds": round(settled, 1), "unexpected": unexpected,
    }  # fmt: skip
    return _verdict(options, facts, report, unexpected)


def _verdict(
    options: argparse.Namespace, facts: dict[str, Any], report: Report, unexpected: list[str]
) -> int:
    whole = {**facts, **report.to_json()}
    if options.report:
        options.report.write_text(json.dumps(whole, indent=2) + "\n")
    if options.json:
        print(json.dumps(whole))
    else:
        print(report.text())
        for line in unexpected:
            print(f"unexpected: {line}")
    failed = bool(report.violations or unexpected)
    if failed:
        again = f"make chaos MINUTES={options.minutes:g} SEED={options.seed}"
        print(f"Run it again: {again} NEMESIS={','.join(options.nemesis)}", file=sys.stderr)
    return 1 if failed else 0


def _break(rig: Rig, nemesis: Nemesis, seconds: float, say: _Speaker) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        rig.look_after()
        begun = nemesis.tick()
        if begun:
            nemesis.struck[begun] += 1
        say.progress(rig, sum(nemesis.struck.values()), begun)
        time.sleep(0.01)


def _settle(rig: Rig, nemesis: Nemesis, say: _Speaker) -> float:
    """Mend everything, stop the producers, wait until every job has ended; the seconds it took."""
    began = time.monotonic()
    while not nemesis.is_idle:
        rig.look_after()
        nemesis.tick(begin=False)
        time.sleep(0.01)
    rig.heal()
    rig.stop_producers()
    rig.journal.note("settling")
    while time.monotonic() - began < SETTLE and rig.query(UNFINISHED) != [(0,)]:
        rig.look_after()
        say.progress(rig, sum(nemesis.struck.values()), None)
        time.sleep(0.1)
    rig.note_clock()
    return time.monotonic() - began


def _await_workers(rig: Rig) -> None:
    """Wait until every worker has its lease, and with it the catalogue its tasks."""
    until = time.monotonic() + 60
    while rig.query("SELECT count(*) FROM workers WHERE NOT isolated") < [(len(rig.workers),)]:
        if time.monotonic() > until:
            raise SystemExit(f"The workers did not start; see {rig.logs}.")
        time.sleep(0.1)


def _drain_rate(rig: Rig, options: argparse.Namespace) -> float:
    """Jobs of the mix a second that the workers end, from a full queue; the long ones left out."""
    dice, count = random.Random(f"{options.seed} drain"), options.measured
    mix = {kind: n for kind, n in options.mix.items() if kind not in ("long", "retrying")}
    journal = Journal(rig.history / "producer-measure.jsonl")
    settings = Settings.load(database_url=rig.postgres.url, redis_url=rig.redis.url)
    began = time.monotonic()
    with Client(settings) as client:
        for _ in range(0, count, 500):
            drawn = [kinds.draw(dice, mix, rig.terms.lease) for _ in range(min(500, count))]
            jobs = [new_job(f"chaos.{kind}", [], arguments) for kind, arguments in drawn]
            client.enqueue_many(jobs)
            for job, (kind, _) in zip(jobs, drawn, strict=True):
                journal.note("accepted", job=job.id, kind=kind, key=None)
    while rig.query(UNFINISHED) != [(0,)]:
        time.sleep(0.02)
    return float(count / (time.monotonic() - began))


def _produce(rig: Rig, rate: float, mix: dict[str, int]) -> None:
    """Four producers: two by the client, one by Celery, one that knows nothing of the ledger."""
    rig.produce("p1", "client", rate * 0.47, mix)
    rig.produce("p2", "client", rate * 0.47, mix)
    rig.produce("p3", "celery", rate * 0.06, mix)
    rig.produce("p4", "foreign", rate * 0.02, mix)


class _Speaker:
    """Progress for people, on stderr."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def progress(self, rig: Rig, faults: int, begun: str | None) -> None:
        """Say where things stand, now and then."""
        if time.monotonic() - self._said < PROGRESS:
            return
        self._said = time.monotonic()
        try:
            rows = dict(rig.query("SELECT state, count(*) FROM jobs GROUP BY state"))
        except psycopg2.Error:
            self("Postgres is away")
            return
        waiting = sum(rows.get(state, 0) for state in ("scheduled", "queued", "running"))
        self(f"{sum(rows.values())} jobs, {waiting} have not ended, {faults} faults")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    made = Path(tempfile.mkdtemp(prefix="celery-ledger-chaos-"))
    made.chmod(0o755)  # Postgres runs as nobody when this runs as root
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things break")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--nemesis", default="all", help="faults, separated by commas")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between faults")
    parser.add_argument("--rate", type=float, help="jobs a second; default: half the drain rate")
    parser.add_argument("--measured", type=int, default=MEASURED, help="jobs to measure it by")
    parser.add_argument("--lease", type=float, default=5.0, help="seconds of a worker's lease")
    parser.add_argument("--distance", type=float, default=6.0, help="ms to a store, each way")
    parser.add_argument("--threads", type=int, default=200, help="slots of a threads worker")
    parser.add_argument("--prefork", type=int, default=2, help="prefork workers")
    parser.add_argument("--mix", type=kinds.read_mix, default=kinds.WEIGHTS, help="noop=80,long=20")
    parser.add_argument("--report", type=Path, help="write the JSON report here")
    parser.add_argument("--keep", type=Path, help="keep everything in this new folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    asked = list(FAULTS) if options.nemesis == "all" else options.nemesis.split(",")
    if unknown := [name for name in asked if name not in FAULTS]:
        parser.error(f"no fault is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    options.nemesis = asked
    return options


if __name__ == "__main__":
    sys.exit(main())
