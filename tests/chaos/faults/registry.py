"""What a fault is, and all there are.

A fault is a generator: it does its harm, yields the seconds until it goes on, and mends it. It
returns without a yield when there is nobody to harm just now. What it did is in the journal:
`begin` and `end`, and `outage` and `back` where producers may be refused meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.chaos.rig import Rig

Course = Generator[float, None, None]
Body = Callable[[Rig, random.Random], Course]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of harm.

    Attributes:
        name: what `NEMESIS=` calls it.
        site: where it strikes; two faults of one site never overlap.
        body: what it does.
        weight: how often it comes, beside the others.
    """

    name: str
    site: str
    body: Body
    weight: int = 2


FAULTS: dict[str, Fault] = {}


def fault(site: str, weight: int = 2) -> Callable[[Body], Body]:
    """Enter a generator function into `FAULTS`."""

    def enter(body: Body) -> Body:
        name = body.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, site, body, weight)
        return body

    return enter


def begin(rig: Rig, name: str, target: str, **more: Any) -> None:
    rig.journal.note("begin", fault=name, target=target, **more)


def end(rig: Rig, name: str, target: str) -> None:
    rig.journal.note("end", fault=name, target=target)


def signal_to(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
