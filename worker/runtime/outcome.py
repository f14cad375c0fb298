"""How a job's run ended, as plain data of ours: what the worker's main process is told of it.

A user's exception may be unable to say what it is, to be pickled, or to be rebuilt, and rebuilding
it may run anything. So none of it leaves the thread or child that ran the job: its texts do, at
bounded length. And what a child sends holds only the classes named here, whatever is in it
(PROTOCOL 31): one answer that the main process cannot rebuild would end the worker.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from billiard.common import terminate_handler_fired
from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.saferepr import saferepr
from kombu.utils.encoding import safe_repr

from worker.jobs.job import Ended, Fence, Finish, Message, NewJob, Ring
from worker.jobs.states import State
from worker.runtime.execution import ERROR_LIMIT, TRACEBACK_LIMIT, clean

#: Longest text, in characters, that is told of a return value; Celery's own limit is 1,024.
VALUE_LIMIT = 100_000
#: What stands before a `Reject`'s reason in the job's error.
REJECTED = "rejected by the task: "
#: What stands where an exception fails to say something.
SPEECHLESS = "(no text)"

T = TypeVar("T")


class Kind(StrEnum):
    """What a task that did not return raised, as Celery tells them apart."""

    FAILED = "failed"
    RETRIED = "retried"
    REJECTED = "rejected"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Raised:
    """What a task raised.

    Attributes:
        kind: what that means to Celery.
        said: the exception's repr; for a retry, that of its reason.
        traceback: text.
        requeue: what a `Reject` asks for.
    """

    kind: Kind
    said: str
    traceback: str
    requeue: bool = False


@dataclass(frozen=True, slots=True)
class Traced:
    """What comes back from the pool.

    Attributes:
        failed: as Celery's tracer has it.
        value: the return value's repr, or what was raised; `None` when the job was not started.
        runtime: seconds, `None` unless it succeeded.
        finish: what to write, `None` when the job was not started.
        committed: `None` unless the end is in the ledger already, because handlers had to find it
            there; then the doorbells to push once the worker has let go of the attempt.
    """

    failed: int
    value: str | Raised | None
    runtime: float | None
    finish: Finish | None
    committed: tuple[Ring, ...] | None = None

    def __reduce__(self) -> tuple[Callable[[bytes], Traced], tuple[bytes]]:
        return _arrived, (packed(self),)


def traced(
    failed: int,
    value: Any,
    runtime: float | None,
    finish: Finish,
    committed: tuple[Ring, ...] | None = None,
) -> Traced:
    """What Celery's tracer returned, without anything of the user's."""
    if failed:
        return Traced(1, raised(value), None, finish, committed)
    if type(value) is str:  # as Celery's tracer has it
        return Traced(0, clean(value, VALUE_LIMIT), runtime, finish, committed)
    text = text_of(lambda: value if isinstance(value, str) else saferepr(value), VALUE_LIMIT)
    return Traced(0, text, runtime, finish, committed)


def raised(info: Any) -> Raised:
    """What an `ExceptionInfo`, or an exception, is about."""
    exc = exception_of(info)
    text = text_of(lambda: info.traceback, TRACEBACK_LIMIT, otherwise="")
    if isinstance(exc, Retry):
        return Raised(Kind.RETRIED, text_of(lambda: safe_repr(exc.exc)), text)
    said = text_of(lambda: saferepr(exc))
    if isinstance(exc, Reject):
        return Raised(Kind.REJECTED, said, text, bool(_try(lambda: exc.requeue, False)))
    return Raised(Kind.IGNORED if isinstance(exc, Ignore) else Kind.FAILED, said, text)


def exception_of(info: Any) -> Any:
    """The exception in an `ExceptionInfo`, as it was raised; or `info` itself, if it is one."""
    exc = getattr(info, "exception", info)
    # By its type: a Retry has an `exc` too, its reason.
    return exc.exc if type(exc) is ExceptionWithTraceback else exc


def describe(exc: BaseException) -> str:
    """One line: the exception's type and what it says."""
    name = text_of(lambda: type(exc).__qualname__)
    text = text_of(lambda: str(exc))
    return f"{name}: {text}" if text else name


def traceback_of(exc: BaseException) -> str:
    """The traceback's text, or nothing where the exception does not let it be written."""
    return text_of(
        lambda: "".join(traceback.format_exception(exc)), TRACEBACK_LIMIT, otherwise=describe(exc)
    )


def exit_code(code: object) -> int:
    """The exit code that `sys.exit(code)` means."""
    return int(code) if isinstance(code, int) else int(code is not None)


def packed(answer: Traced) -> bytes:
    """`answer` for the pipe; one that cannot be sent is sent as a failure that says so."""
    parts = answer.failed, answer.value, answer.runtime, answer.finish, answer.committed
    try:
        return _pickled(parts)
    except Exception as exc:
        if answer.finish is None:
            raise
        reason = f"the end of this attempt cannot leave the process that ran it: {describe(exc)}"
        end = replace(
            Finish(answer.finish.fence, State.FAILED, "failed"),
            error=clean(reason, ERROR_LIMIT), traceback=clean(traceback_of(exc), TRACEBACK_LIMIT),
        )  # fmt: skip
        return _pickled((1, Raised(Kind.FAILED, reason, ""), None, end))


class _Pickler(pickle.Pickler):
    """Pickles plain data and our own classes, and nothing else."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in _OUR_ENUMS:  # Python before 3.11.4 would have the pipe call `getattr`
            return type(obj), (obj.value,)
        if type(obj) in _OURS or (isinstance(obj, type) and (obj in _OURS or obj in _PLAIN)):
            return NotImplemented
        for plain in _PLAIN:
            if isinstance(obj, plain):  # a subclass, as Django's SafeString
                return plain, (plain.__getnewargs__(obj)[0],)
        raise pickle.PicklingError(f"a {type(obj).__qualname__} is in it")


_OURS = frozenset({Ended, Fence, Finish, Kind, Message, NewJob, Raised, Ring, State})
_OUR_ENUMS = frozenset({Kind, State})
_PLAIN: tuple[Any, ...] = (str, bytes, int, float)


def _pickled(value: Any) -> bytes:
    into = io.BytesIO()
    _Pickler(into, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return into.getvalue()


def _arrived(data: bytes) -> Traced:
    return Traced(*pickle.loads(data))  # noqa: S301 -- our own child's, of our own classes


def text_of(say: Callable[[], Any], limit: int = ERROR_LIMIT, otherwise: str = SPEECHLESS) -> str:
    """What `say` says, as a plain string of bounded length."""
    return _try(lambda: clean(str.__str__(say()), limit) or "", otherwise)


def _try(call: Callable[[], T], otherwise: T) -> T:
    """What `call` returns; `otherwise` when the user's code in it raises, whatever that is."""
    try:
        return call()
    except BaseException:
        if terminate_handler_fired():
            raise  # this child is being terminated
        return otherwise
