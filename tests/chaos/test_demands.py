"""What a run must show beside a clean history, its options, and the command to run it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import options
from tests.chaos.counts import WINDOW, rates
from tests.chaos.demands import demanded, level_of
from tests.chaos.history import Event

FACTS: dict[str, Any] = {
    "nemesis": ["flushall", "kill-worker", "term-worker"],
    "met": {"flushall": 1, "kill-worker": 3, "term-worker": 2},
    "unexpected": [],
    "silent": [],
    "drain_seconds": 5.0,
    "drain_rate": 600,
}
COUNTS: dict[str, Any] = {
    "drains": {"drains": 2, "seconds": {"min": 1.0, "median": 3.0, "max": 9.9}},
    "accepted_per_second": {"min": 201.0, "median": 300.0, "windows": 20, "seconds": 3.0},
    "kills": {
        "threads": {"kills": 3, "unstarted": {"median": 51}, "unflushed": {"median": 60}},
        "prefork": {"kills": 2, "unstarted": {"median": 1}, "unflushed": {"median": 1}},
    },
}


def failures(level: str, facts: dict[str, Any], counts: dict[str, Any]) -> list[str]:
    made = demanded(level, {**FACTS, **facts}, {**COUNTS, **counts})
    return [demand.name for demand in made if not demand.is_met]


def test_a_run_that_did_what_it_should_meets_every_demand() -> None:
    assert failures("full", {}, {}) == []
    assert len(demanded("full", FACTS, COUNTS)) == 10


@pytest.mark.parametrize(
    ("facts", "counts", "failing"),
    [
        ({"met": {"flushall": 1, "term-worker": 2}}, {}, "kill-worker was met"),
        ({"unexpected": ["w1-2@chaos ended with 1"]}, {}, "nothing unexpected"),
        ({"silent": ["w2-1@chaos ran nothing"]}, {}, "each worker consumes again"),
        ({"silent": None}, {}, "each worker consumes again"),
        ({}, {"drains": {"drains": 1, "seconds": {"max": 10.1}}}, "each drain ends within 10 s"),
        ({}, {"drains": None}, "each drain ends within 10 s"),
    ],
)
def test_a_short_run_too_must_show_that_everything_happened(
    facts: dict[str, Any], counts: dict[str, Any], failing: str
) -> None:
    for level in ("short", "full"):
        assert failures(level, facts, counts) == [failing]
    assert failures("none", facts, counts) == []


MEDIAN = "median accepted jobs/s >= 300, half of the drain rate"
LEAST = "least accepted jobs/s >= 200"


@pytest.mark.parametrize(
    ("facts", "counts", "failing"),
    [
        ({"drain_rate": 602}, {}, [MEDIAN.replace("300", "301")]),
        ({}, {"accepted_per_second": {**COUNTS["accepted_per_second"], "min": 199.9}}, [LEAST]),
        ({}, {"accepted_per_second": None}, [MEDIAN, LEAST]),
        (
            {},
            {"kills": {"threads": {**COUNTS["kills"]["threads"], "unstarted": {"median": 50}}}},
            ["median unstarted jobs of a killed threads worker > 50"],
        ),
        (
            {},
            {"kills": {"prefork": COUNTS["kills"]["prefork"]}},
            [f"median {what} jobs of a killed threads worker > 50"
             for what in ("unstarted", "unflushed")],
        ),
    ],
)  # fmt: skip
def test_a_long_run_must_show_that_its_load_was_real(
    facts: dict[str, Any], counts: dict[str, Any], failing: list[str]
) -> None:
    assert failures("full", facts, counts) == failing
    assert failures("short", facts, counts) == []


def test_a_run_that_fell_over_fails() -> None:
    fallen: dict[str, Any] = {
        "met": {},
        "drain_rate": None,
        "silent": None,
        "unexpected": ["the run did not end"],
    }

    assert len(failures("full", fallen, {"drains": None, "kills": {}})) == 9


def test_figures_are_demanded_of_long_runs() -> None:
    assert (level_of(9.9), level_of(10)) == ("short", "full")


def test_an_outage_without_an_end_leaves_the_windows_before_it() -> None:
    load = [tick / 100 for tick in range(3001)]
    nemesis: list[Event] = [{"event": "outage", "store": "redis", "wall": 10.0}]

    seen = rates(load, nemesis)

    assert seen is not None
    assert (seen["windows"], seen["seconds"], seen["median"]) == (3, WINDOW, 100)
    assert rates(load, [{"event": "outage", "store": "redis", "wall": -1.0}]) is None
    assert rates([], nemesis) is None


def test_an_outage_that_ends_after_the_load_leaves_the_windows_before_it() -> None:
    load = [tick / 100 for tick in range(3001)]
    nemesis: list[Event] = [
        {"event": "outage", "store": "redis", "wall": 10.0},
        {"event": "back", "store": "redis", "wall": 60.0},
        {"event": "outage", "store": "redis", "wall": 70.0},
        {"event": "back", "store": "redis", "wall": 71.0},
    ]

    seen = rates(load, nemesis)

    assert seen is not None and seen["windows"] == 3


def test_the_command_asks_for_the_same_run() -> None:
    argv = ["--minutes", "0.5", "--seed", "a b", "--nemesis", "flushall,cut", "--lease", "3",
            "--mix", "noop=80,long=20", "--rate", "20", "--every", "2.5", "--until-met",
            "--measured", "1700", "--report", "r.json"]  # fmt: skip
    asked = options.read(argv)

    make, *words = shlex.split(options.again(asked))
    variables = dict(word.split("=", 1) for word in words[1:])

    assert [make, words[0]] == ["make", "chaos"]
    again = ["--minutes", variables["MINUTES"], "--seed", variables["SEED"]]
    again += ["--nemesis", variables["NEMESIS"], *shlex.split(variables["OPTIONS"])]
    assert vars(options.read(again)) == {**vars(asked), "report": None}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--mix", "foo=1"], "no kind is called foo; there are: noop, "),
        (["--mix", "noop"], "is not such as noop=80,long=20"),
        (["--mix", "noop=0"], "noop=0 has a weight below 0, or none above it"),
        (["--lease", "0"], "0 is not from 1 to 3600 seconds"),
        (["--minutes", "0"], "0 is not more than 0"),
        (["--nemesis", "flushal"], "no fault is called flushal; there are: "),
        (["--threaded", "0", "--prefork", "0"], "there must be a worker"),
    ],
)
def test_what_cannot_be_is_told(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read(argv)

    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_run_is_never_kept_in_a_folder_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read(["--keep", str(tmp_path)])

    assert ended.value.code == 2
    assert "is there already; name a new folder" in capsys.readouterr().err
