"""Tasks whose ends do not survive the way from a child to its worker, or try to do harm there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from celery import Task, shared_task, signals
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown
from kombu.utils.json import register_type

#: Set in a child by what is rebuilt: nothing of it may be, in the main process.
REBUILT = "REBUILT_IN"


class Abort(BaseException):
    """Cannot be rebuilt from its arguments, and is no Exception."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{why} ({code})")


class Refused(Exception):
    """The same, of the usual kind."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{why} ({code})")


class Unwritable(Exception):
    """Does not let itself be pickled."""

    def __reduce__(self) -> Any:
        raise SystemError("no pickles")


def kill_who_rebuilds(owner: int) -> None:
    """End the process that rebuilds this, unless it is the one that made it."""
    if os.getpid() != owner:
        os.kill(os.getpid(), signal.SIGKILL)


class Harmful(BaseException):
    """Ends whoever rebuilds it in another process."""

    def __reduce__(self) -> Any:
        return kill_who_rebuilds, (os.getpid(),)


class Elsewhere(BaseException):
    """Its class is found in no module."""


Elsewhere.__module__ = "no.such.module"


class Speechless(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise KeyboardInterrupt("str")

    __repr__ = __str__


class Endless(BaseException):
    """Holds itself, and much."""

    def __init__(self) -> None:
        super().__init__([])
        self.args[0].append(self.args)
        self.text = "x" * 5_000_000

    def __repr__(self) -> str:
        return self.text

    def __str__(self) -> str:
        return self.text


class Word(str):
    """A text that cannot be pickled, as those of templates and of lazy translations."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise TypeError("lazy")


def _chained() -> BaseException:
    try:
        raise Abort(1, "first")
    except Abort as exc:
        second = Refused(2, "second")
        second.__cause__ = exc
        return second


#: What a task raises, by name.
RAISED: dict[str, Callable[[], BaseException]] = {
    "abort": lambda: Abort(7, "stop"),
    "refused": lambda: Refused(7, "stop"),
    "unwritable": Unwritable,
    "harmful": Harmful,
    "elsewhere": Elsewhere,
    "speechless": Speechless,
    "endless": Endless,
    "lambda": lambda: Abort.__new__(Abort, lambda: 0),
    "generator": lambda: ValueError(n for n in range(3)),
    "lock": lambda: ValueError(threading.Lock()),
    "group": lambda: BaseExceptionGroup("all", [Abort(1, "one"), Speechless()]),
    "chained": _chained,
    "exit with an object": lambda: SystemExit(Harmful()),
    "reject": lambda: Reject(Harmful()),
    "reject speechless": lambda: Reject(Speechless()),
    "ignore": lambda: Ignore(Harmful()),
    "retry": lambda: Retry(exc=Harmful()),
    "recursion": lambda: RecursionError(Harmful()),
    "stop iteration": lambda: StopIteration(Harmful()),
    "interrupt": lambda: KeyboardInterrupt(Harmful()),
    "generator exit": lambda: GeneratorExit(lambda: 0),
}


@shared_task(name="travel.raise")
def raise_it(what: str) -> None:
    raise RAISED[what]()


class Hooked(Task[Any, Any]):
    """Its hooks raise what does not survive."""

    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        raise RAISED[self.name.removeprefix("travel.hook.")]()

    after_return = on_success = on_failure


def _hooks(what: str) -> None:
    @shared_task(base=Hooked, name=f"travel.hook.{what}")
    def hooked(fails: bool) -> None:
        if fails:
            raise ValueError(Harmful())


for name in ("abort", "unwritable", "speechless"):
    _hooks(name)


@shared_task(name="travel.return")
def return_it(what: str) -> Any:
    """What JSON cannot hold, or only after a look."""
    return {"lambda": lambda: 0, "harmful": Harmful(), "word": Word("said"), "set": {1}}[what]


@shared_task(name="travel.call", bind=True)
def call(self: Any, log: str) -> str:
    """Enqueue with texts that cannot be pickled, also in what follows the return."""
    word = Word("celery")
    return_it.apply_async(args=("word",), queue=word, link=return_it.si(Word("word")))
    self.update_state(state=Word("HALFWAY"), meta={"at": 1})
    return Word("called")


@shared_task(name="travel.retry", bind=True, max_retries=1)
def retry(self: Any) -> str:
    """Ask once to be tried again, for a reason that does not survive."""
    if not self.request.retries:
        raise self.retry(exc=Unwritable(lambda: 0), countdown=0)
    return "tried"


class Parcel:
    """An argument of a type of the user's, which ends who rebuilds it but its decoder."""

    def __reduce__(self) -> Any:
        return kill_who_rebuilds, (os.getpid(),)


register_type(Parcel, "parcel", lambda parcel: "", lambda text: Parcel())


@shared_task(name="travel.unpack")
def unpack(parcel: Any) -> str:
    return type(parcel).__name__


@signals.task_prerun.connect
def _before(sender: Any, **_: Any) -> None:
    if sender.name == "travel.signal":
        raise Abort(9, "in a signal's handler")


@shared_task(name="travel.signal")
def signalled() -> None:
    """Its handler of `task_prerun` raises."""


@shared_task(name="travel.shutdown")
def shut_down() -> None:
    raise WorkerShutdown(Harmful())
