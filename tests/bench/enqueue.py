"""How fast jobs are accepted: in a row, in bulk, and beside the least that it can cost."""

from __future__ import annotations

import shutil
import statistics

from tests.bench.contenders import Contender
from tests.bench.field import Field, Place
from tests.bench.runs import Failed, Run, percentile
from tests.bench.usage import Meter

FLOOR = "tests.bench.apps.floor"


def enqueue(field: Field, contender: Contender, way: str, seconds: float, place: Place) -> Run:
    """Enqueue no-ops by one producer for so long, with no worker beside it."""
    place.empty()
    tally = field.tally()
    meter = Meter([*field.pids, *place.between])
    (answer,) = field.run(contender, place, tally, [contender.app, way, "noop", 0, seconds])
    others = meter.others()
    shutil.rmtree(tally)
    timed, took = int(answer["timed"]), float(answer["seconds"])
    _check(contender, place, int(answer["jobs"]))
    return Run(
        "enqueue", contender.name, contender.title, way, place.setting,
        int(answer["jobs"]), took, {"rate": timed / took, "others": others},
    )  # fmt: skip


def floor(field: Field, contender: Contender, seconds: float, place: Place) -> list[Run]:
    """One enqueue after the other, in turn with a bare commit and a bare LPUSH."""
    place.empty()
    tally = field.tally()
    meter = Meter([*field.pids, *place.between])
    (answer,) = field.run(contender, place, tally, [FLOOR, seconds])
    others = meter.others()
    shutil.rmtree(tally)
    place.execute("DROP TABLE bench_floor")
    runs = []
    for way, took in answer.items():
        figures = {
            "p50_ms": percentile(took, 0.5) * 1000,
            "p99_ms": percentile(took, 0.99) * 1000,
            "rate": 1 / statistics.mean(took),
            "others": others,
        }
        runs.append(
            Run(
                "floor",
                contender.name,
                "one producer, one at a time",
                way,
                place.setting,
                len(took),
                sum(took),
                figures,
            )
        )
    return runs


def _check(contender: Contender, place: Place, jobs: int) -> None:
    """What was enqueued is there, where the contender keeps it in rows."""
    if contender.is_ours:
        (found,) = place.execute("SELECT count(*) FROM ledger.jobs WHERE state = 'queued'")[0]
        if found != jobs:
            raise Failed(f"{contender.name} has {found} rows of {jobs} jobs.")
