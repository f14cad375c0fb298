from __future__ import annotations

from contextlib import ExitStack
from typing import cast

import pytest

from tests.bench import plan
from tests.bench.field import Field
from tests.bench.runs import Failed, Run


class Steps(plan.Bench):
    """A bench of one section, whose steps only note that they were called."""

    def __init__(self, *steps: plan.Step) -> None:
        super().__init__(cast(Field, None), (), 0.0, True, ExitStack())
        self._given = steps

    def steps(self, section: str) -> list[plan.Step]:
        return list(self._given)


def run(name: str) -> Run:
    return Run("drain", name, name, "noop", "", 1, 1.0, {"rate": 1.0})


def test_the_contenders_take_turns() -> None:
    bench = Steps(plan.Step("a", lambda: [run("a")]), plan.Step("b", lambda: [run("b")]))

    plan.measure(bench, ["drain"], 2, float("inf"), str)

    assert [one.contender for one in bench.runs] == ["a", "b", "a", "b"]


def test_what_was_measured_once_is_not_repeated_when_no_time_is_left() -> None:
    bench = Steps(plan.Step("a", lambda: [run("a")]), plan.Step("b", lambda: [run("b")]))

    plan.measure(bench, ["drain"], 2, 0.0, str)

    assert [one.contender for one in bench.runs] == ["a", "b"]
    assert bench.unrepeated == ["a", "b"]


def test_who_fails_is_named_and_left_out_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> list[Run]:
        raise Failed("It ran 9 of 10 jobs.")

    bench = Steps(plan.Step("a", fail), plan.Step("b", lambda: [run("b")]))

    plan.measure(bench, ["drain"], 2, float("inf"), str)

    assert bench.failures == {"a": "It ran 9 of 10 jobs."}
    assert [one.contender for one in bench.runs] == ["b", "b"]
    assert capsys.readouterr().out.count("FAILED") == 1
