"""Many jobs by filter: the options that name them, a count before anything is done, progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from worker.cli.door import TEXT
from worker.client import Client, Selection
from worker.jobs.states import State

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


class Age(click.ParamType[float]):
    """A time as people write it: `90`, `90s`, `15m`, `2h`, `7d`."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no age; write it as 90s, 15m, 2h or 7d.", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


def filters(states: Iterable[State], default: Iterable[State]) -> Callable[[F], F]:
    """The options that select jobs; `states` are those that can be named."""
    names = ", ".join(default)
    options = (
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([str(state) for state in states]),
            help=f"Only these; may be repeated. Default, with another filter: {names}.",
        ),
        click.option("--queue", type=TEXT, help="Only those of this queue."),
        click.option("--task", type=TEXT, help="Only those of this task."),
        click.option(
            "--older-than",
            metavar="AGE",
            type=Age(),
            help="Only those that were created so long ago: 90s, 15m, 2h, 7d.",
        ),
        click.option("--yes", is_flag=True, help="Do not ask."),
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def selection_of(
    job_id: str | None,
    default: tuple[State, ...],
    *,
    states: tuple[str, ...],
    queue: str | None,
    task: str | None,
    older_than: float | None,
) -> Selection | None:
    """What the options select; `None` when an id was named instead.

    Raises:
        click.UsageError: neither was named, or both.
    """
    is_filtered = bool(states) or not (queue is None and task is None and older_than is None)
    if (job_id is None) != is_filtered:
        raise click.UsageError(
            "Name one job by its ID, or many by --state, --queue, --task or --older-than."
        )
    if job_id is not None:
        return None
    chosen = tuple(State(state) for state in states) or default
    return Selection(chosen, queue=queue, task=task, older_than=older_than or 0.0)


def act(
    client: Client,
    selection: Selection,
    verb: str,
    do: Callable[[Callable[[int], None]], int],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Count, ask, do, and say how many.

    Args:
        client: of the ledger.
        selection: which jobs.
        verb: what is done to them: cancelled, replayed.
        do: does it, and tells how far it has come.
        yes: whether nobody is asked.
        as_json: whether the answer is one JSON object.

    Raises:
        click.UsageError: nobody can be asked, and `yes` was not said.
        click.Abort: the answer was no.
    """
    found = client.count_selected(selection)
    total = sum(found.values())
    jobs = "1 job" if total == 1 else f"{total:,} jobs"
    words = ", ".join(f"{count:,} {state}" for state, count in found.items()) or "none"
    if total and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"{jobs} would be {verb} ({words}), and nobody is here to ask; add --yes."
            )
        click.confirm(f"{jobs} will be {verb} ({words}). Go on?", abort=True, err=True)
    done = 0
    if total:
        with _progress(total) as show:
            done = do(show)
    if as_json:
        click.echo(json.dumps({"matched": total, verb: done}))
    else:
        click.echo(
            f"{done:,} job{'s' * (done != 1)} {verb}."
            if total
            else f"No job matches; none was {verb}."
        )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far it has come, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    try:
        yield lambda done: click.echo(f"\r{done:,} of {total:,}", err=True, nl=False)
    finally:
        click.echo(err=True)
