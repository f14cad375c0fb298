"""What a chaos run is asked for, and the command that asks for the same again."""

from __future__ import annotations

import argparse
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos import kinds
from tests.chaos.demands import LEVELS, level_of
from tests.chaos.faults import FAULTS
from tests.chaos.faults.registry import missing_parts

#: Jobs by which the drain rate is measured, before anything is broken.
MEASURED = 6000
#: A worker's lease, in seconds: the least and the most that the service takes.
LEASES = (1.0, 3600.0)
#: What is not asked for again: where the run was kept does not change it.
_OF_THIS_RUN = {"report", "keep", "json", "judge"}
#: Options that `make chaos` has a variable for.
_VARIABLES = {"minutes": "MINUTES", "seed": "SEED", "nemesis": "NEMESIS"}


def read(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, each within its bounds; a fault of them ends the program with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    asked = list(FAULTS) if options.nemesis == "all" else options.nemesis.split(",")
    if unknown := [name for name in asked if name not in FAULTS]:
        parser.error(f"no fault is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    options.left_out = missing_parts(asked)
    if options.left_out and options.nemesis != "all":
        parser.error("; ".join(options.left_out.values()))
    options.nemesis = [name for name in dict.fromkeys(asked) if name not in options.left_out]
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep: {options.keep} is there already; name a new folder")
    if options.prefork + options.threaded < 1:
        parser.error("there must be a worker: --threaded or --prefork of at least 1")
    options.level = options.demands or level_of(options.minutes)
    return options


def again(options: argparse.Namespace) -> str:
    """The command that runs `options` again, with everything in it that is not the default."""
    words, more = ["make chaos"], []
    for action in _parser()._actions:
        given = getattr(options, action.dest, action.default)
        if action.dest in _OF_THIS_RUN or (
            given == action.default and action.dest not in _VARIABLES
        ):
            continue
        if variable := _VARIABLES.get(action.dest):
            words.append(f"{variable}={shlex.quote(_said(given))}")
        elif given is True:
            more.append(action.option_strings[0])
        else:
            more.append(f"{action.option_strings[0]} {shlex.quote(_said(given))}")
    if more:
        words.append(f"OPTIONS={shlex.quote(' '.join(more))}")
    return " ".join(words)


def _said(given: Any) -> str:
    """A value as its option takes it."""
    match given:
        case dict():
            return ",".join(f"{name}={value}" for name, value in given.items())
        case list():
            # What this machine cannot do was left out of "all", and would be again.
            return "all" if {*given, *missing_parts(FAULTS)} == {*FAULTS} else ",".join(given)
        case float():
            return f"{given:g}"
        case _:
            return str(given)


def _parser() -> argparse.ArgumentParser:
    above_0 = _number(lambda value: 0 < value < float("inf"), "more than 0")
    count = _number(lambda value: value >= 1, "1 or more", int)
    some = _number(lambda value: value >= 0, "0 or more", int)
    lease = _number(lambda value: LEASES[0] <= value <= LEASES[1], "from 1 to 3600 seconds")
    distance = _number(lambda value: 0 <= value < 10_000, "from 0 to 10,000 ms")
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break a real service; judge its history."
    )
    parser.add_argument("--minutes", type=above_0, default=2.0, help="how long things break")
    parser.add_argument(
        "--until-met", action="store_true", help="end sooner, once every fault has been met"
    )
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--nemesis", default="all", help="faults, separated by commas")
    parser.add_argument("--every", type=above_0, default=8.0, help="seconds between faults")
    parser.add_argument("--away", type=above_0, help="seconds that `postgres-away` lasts")
    parser.add_argument("--rate", type=above_0, help="jobs/s; default: from the drain rate")
    parser.add_argument("--measured", type=count, default=MEASURED, help="jobs to measure it by")
    parser.add_argument("--lease", type=lease, default=5.0, help="seconds of a worker's lease")
    parser.add_argument("--distance", type=distance, default=10.0, help="ms to a store, each way")
    parser.add_argument("--threads", type=count, default=200, help="slots of a threads worker")
    parser.add_argument("--threaded", type=some, default=2, help="threads workers")
    parser.add_argument("--prefork", type=some, default=2, help="prefork workers")
    parser.add_argument("--mix", type=_mix, default=kinds.WEIGHTS, help="such as noop=80,long=20")
    parser.add_argument(
        "--demands", choices=LEVELS, help="what fails the run beside violations; by --minutes"
    )
    parser.add_argument("--report", type=Path, help="write the JSON report here")
    parser.add_argument("--keep", type=Path, help="keep everything in this new folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--judge", type=Path, metavar="FOLDER", help="run nothing: judge a run that was kept"
    )
    return parser


def _number(
    is_good: Callable[[float], bool], otherwise: str, kind: type[int] | type[float] = float
) -> Callable[[str], float]:
    def number(text: str) -> float:  # argparse names it where the text is none
        value = kind(text)
        if not is_good(value):
            raise argparse.ArgumentTypeError(f"{text} is not {otherwise}")
        return value

    return number


def _mix(text: str) -> dict[str, int]:
    try:
        mix = kinds.read_mix(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text} is not such as noop=80,long=20: {exc}") from None
    if min(mix.values()) < 0 or not any(mix.values()):
        raise argparse.ArgumentTypeError(f"{text} has a weight below 0, or none above it")
    return mix
