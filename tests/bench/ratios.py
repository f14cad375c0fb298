"""The ratios that are asked for, from the medians of one bench, each with its bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.bench.contenders import PEERS
from tests.bench.runs import Medians


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio must be.

    Attributes:
        bound: the least or the most that it may be.
        side: which of both.
        unit: what stands behind the number.
        meaning: for people.
    """

    bound: float
    side: Literal["at least", "at most"]
    unit: str
    meaning: str

    def passes(self, value: float) -> bool:
        """Whether a measured value clears it."""
        return value >= self.bound if self.side == "at least" else value <= self.bound


OURS = "ledger-threads"
BARS: Mapping[str, Bar] = {
    "drain_vs_stock_db": Bar(25, "at least", "x", "no-ops drained, vs stock, results in Postgres"),
    "drain_vs_stock_noresult": Bar(5, "at least", "x", "no-ops drained, vs stock without results"),
    "drain_vs_dramatiq": Bar(1.2, "at least", "x", "no-ops drained, vs Dramatiq without results"),
    "drain_vs_best_peer": Bar(1, "at least", "x", "no-ops drained, vs the fastest peer"),
    "prefork_vs_stock_db": Bar(4, "at least", "x", "prefork, vs stock with results in Postgres"),
    "bulk_enqueue_vs_delay": Bar(15, "at least", "x", "bulk enqueue, vs stock's delay() in a loop"),
    "enqueue_p50_vs_floor": Bar(1.5, "at most", "x", "enqueue, vs a bare commit and a bare LPUSH"),
    "start_p99_ms_idle": Bar(10, "at most", "ms", "from enqueue to start while idle, p99"),
    "drain_2ms_vs_0ms": Bar(0.6, "at least", "x", "no-ops drained, stores 2 ms away vs here"),
    "drain_deep_vs_empty": Bar(0.9, "at least", "x", "no-ops drained, 11 million rows vs none"),
    "cpu_per_job_vs_stock_db": Bar(0.125, "at most", "x", "processor time of a job, vs stock's"),
}  # fmt: skip


def of(medians: Medians) -> dict[str, float]:
    """Every ratio whose two sides were measured, in the order of `BARS`."""
    get = medians.get
    ours = get("rate", "drain", OURS)
    peers = [rate for name in PEERS if (rate := get("rate", "drain", name))]
    found = {
        "drain_vs_stock_db": _over(ours, get("rate", "drain", "stock-db")),
        "drain_vs_stock_noresult": _over(ours, get("rate", "drain", "stock-noresult")),
        "drain_vs_dramatiq": _over(ours, get("rate", "drain", "dramatiq")),
        "drain_vs_best_peer": _over(ours, max(peers, default=None)),
        "prefork_vs_stock_db": _over(
            get("rate", "drain", "ledger-prefork"), get("rate", "drain", "stock-db")
        ),
        "bulk_enqueue_vs_delay": _over(
            get("rate", "enqueue", OURS, "bulk"),
            get("rate", "enqueue", "stock-noresult", "single"),
        ),
        "enqueue_p50_vs_floor": _over(
            get("p50_ms", "floor", OURS, "enqueue"), get("p50_ms", "floor", OURS, "floor")
        ),
        "start_p99_ms_idle": get("start_p99_ms", "latency", OURS, "stamp", "idle"),
        "drain_2ms_vs_0ms": _over(get("rate", "drain", OURS, setting="2ms"), ours),
        "drain_deep_vs_empty": _over(
            get("rate", "drain", OURS, setting="deep"), get("rate", "drain", OURS, setting="empty")
        ),
        "cpu_per_job_vs_stock_db": _over(
            get("cpu", "drain", OURS), get("cpu", "drain", "stock-db")
        ),
    }
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
