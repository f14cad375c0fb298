"""What a fault is, and all there are.

A fault is a generator: it does its harm, yields the seconds until it goes on, and mends it. It
returns without a yield when there is nobody to harm just now, and raises `NotNow`, before it has
begun, to come back a little later. Every draw that decides what is struck comes from its own dice.
What it did is in the journal: `begin` and `end`; `met` once it is proven that the harm was done;
`outage` and `back` where producers may be refused meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.chaos.rig import Rig

Course = Generator[float, None, None]
Body = Callable[[Rig, random.Random], Course]


def _nothing() -> str | None:
    return None


class NotNow(Exception):
    """This is not the moment for a fault: it is to begin anew a little later."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of harm.

    Attributes:
        name: what `NEMESIS=` calls it.
        site: where it strikes; two faults of one site never overlap, but for workers: there the
            site is the member, and never more than half of them suffer.
        body: what it does.
        weight: how often it comes, beside the others.
        lack: what this machine lacks for it, in a sentence, if it lacks anything.
    """

    name: str
    site: str
    body: Body
    weight: int = 2
    lack: Callable[[], str | None] = _nothing


FAULTS: dict[str, Fault] = {}


def fault(
    site: str, weight: int = 2, lack: Callable[[], str | None] = _nothing
) -> Callable[[Body], Body]:
    """Enter a generator function into `FAULTS`."""

    def enter(body: Body) -> Body:
        name = body.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, site, body, weight, lack)
        return body

    return enter


def missing_parts(names: Iterable[str]) -> dict[str, str]:
    """Of these faults the ones that cannot be done on this machine, each with the reason."""
    return {name: lack for name in names if (lack := FAULTS[name].lack())}


def begin(rig: Rig, name: str, target: str, **more: Any) -> None:
    rig.journal.note("begin", fault=name, target=target, **more)


def met(rig: Rig, name: str, target: str, **proof: Any) -> None:
    """Its harm was done: `proof` tells by what that is known."""
    rig.met[name] += 1
    rig.journal.note("met", fault=name, target=target, proof=proof)


def end(rig: Rig, name: str, target: str, **more: Any) -> None:
    rig.journal.note("end", fault=name, target=target, **more)


def signal_to(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def state_of(pid: int) -> str:
    """What the kernel says of a process: R, S, T stopped, Z dead and not buried, "" gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, whoever has yet to bury it."""
    return state_of(pid) in ("", "Z", "X")
