from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.bench import __main__, contenders, ratios, recovery, report
from tests.bench.picture import picture
from tests.bench.runs import Medians, Run, percentile, spread


def drained(contender: str, rate: float, setting: str = "", cpu: float = 100.0) -> Run:
    figures = {"rate": rate, "cpu": cpu, "memory": 1e8}
    return Run("drain", contender, f"{contender}, 2 < 3", "noop", setting, 10, 10.0, figures)


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [float(number) for number in range(100, 0, -1)]

    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError):
        percentile([], 0.5)


def test_a_median_is_taken_over_the_rounds_of_one_setting() -> None:
    runs = [drained("x", 1), drained("x", 5), drained("x", 3), drained("x", 90, "2ms")]

    assert Medians(runs).get("rate", "drain", "x") == 3
    assert Medians(runs).get("rate", "drain", "x", setting="2ms") == 90
    assert Medians(runs).get("rate", "drain", "y") is None
    assert spread(runs[:3], "rate") == (3, 1, 5)
    assert spread(runs, "never measured") is None


def test_ratios_compare_ours_with_each_and_with_the_fastest_peer() -> None:
    runs = [
        drained("ledger-threads", 4000, cpu=50),
        drained("ledger-prefork", 900),
        drained("stock-db", 160, cpu=800),
        drained("dramatiq", 2000),
        drained("huey", 3200),
        drained("ledger-threads", 3000, "2ms"),
    ]

    assert ratios.of(Medians(runs)) == {
        "drain_vs_stock_db": 25,
        "drain_vs_dramatiq": 2,
        "drain_vs_best_peer": 1.25,
        "prefork_vs_stock_db": 5.625,
        "drain_2ms_vs_0ms": 0.75,
        "cpu_per_job_vs_stock_db": 0.0625,
    }


def test_the_enqueue_ratios_come_from_their_own_runs() -> None:
    runs = [
        Run("enqueue", "ledger-threads", "", "bulk", "", 1, 1.0, {"rate": 9000}),
        Run("enqueue", "stock-noresult", "", "single", "", 1, 1.0, {"rate": 600}),
        Run("floor", "ledger-threads", "", "enqueue", "", 1, 1.0, {"p50_ms": 3.0}),
        Run("floor", "ledger-threads", "", "floor", "", 1, 1.0, {"p50_ms": 2.0}),
        Run("latency", "ledger-threads", "", "stamp", "idle", 1, 1.0, {"start_p99_ms": 7.5}),
    ]

    assert ratios.of(Medians(runs)) == {
        "bulk_enqueue_vs_delay": 15,
        "enqueue_p50_vs_floor": 1.5,
        "start_p99_ms_idle": 7.5,
    }


def test_every_ratio_is_judged_by_its_bar_and_on_the_bar_it_passes() -> None:
    exact = {name: bar.bound for name, bar in ratios.BARS.items()}
    worse = {
        name: bar.bound * (0.9 if bar.side == "at least" else 1.1)
        for name, bar in ratios.BARS.items()
    }

    assert report.missed(exact) == []
    assert report.missed(worse) == list(ratios.BARS)
    assert "PASS" in report.verdicts(exact) and "MISSED" not in report.verdicts(exact)
    assert "not measured" in report.verdicts({})


def test_the_tables_show_medians_with_their_spread() -> None:
    text = report.tables([drained("x", 1000), drained("x", 3000), drained("x", 2000)])

    assert "| x, 2 < 3 | noop | 2,000 (1,000 to 3,000) | 100 |" in text


def test_the_picture_is_xml_with_a_bar_for_each_contender_and_both_schemes() -> None:
    text = picture([drained("a", 10), drained("a", 12), drained("b", 5)], "2 cores")

    bars = ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")

    assert [float(bar.attrib["width"]) > 0 for bar in bars] == [True, True]
    assert "prefers-color-scheme: dark" in text


def test_kills_become_runs_but_for_those_with_nothing_to_time() -> None:
    kill = {"lane": "celery-ledger", "shape": "one job", "seconds": {"a": 9.0}, "figure": 9.0}

    runs = recovery.runs_of([kill, {**kill, "figure": None}])

    assert [run.figures for run in runs] == [{"seconds": 9.0}]


def test_a_peer_that_is_not_installed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = replace(contenders.DRAMATIQ, needs="no_such_module")
    monkeypatch.setattr(__main__, "CONTENDERS", (contenders.THREADS, absent))

    chosen = __main__._chosen(None)

    assert chosen == [contenders.THREADS]
    assert capsys.readouterr().out == (
        "Dramatiq is not installed and is left out; `make bench` installs it.\n"
    )
