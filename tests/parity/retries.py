"""Retries: `self.retry`, `autoretry_for`, and what they pass on."""

from __future__ import annotations

import time
from typing import Any

from tests.parity.rows import row
from tests.parity.side import PATIENCE, PREFORK, Side, chord


@row("a task that retries twice has run with retries 2 in the end", 2)
def twice(s: Side) -> Any:
    return s.t.flaky.delay(2).get(timeout=PATIENCE)


@row("a retried job keeps its id", True)
def keeps_id(s: Side) -> Any:
    result = s.t.flaky.delay(1)
    result.get(timeout=PATIENCE)
    return s.app.AsyncResult(result.id).state == "SUCCESS"


@row("retries used up raise the exception that was given", ["Trouble", ("for good", 1)])
def given_exception(s: Side) -> Any:
    exc = s.error(s.t.hopeless.delay(True))
    return [type(exc).__name__, exc.args]


@row(
    "retries used up raise MaxRetriesExceededError where none was given", "MaxRetriesExceededError"
)
def no_exception(s: Side) -> Any:
    return type(s.error(s.t.hopeless.delay(False))).__name__


@row("a retry may bring other arguments", 30)
def other_args(s: Side) -> Any:
    return s.t.other_args.delay(3).get(timeout=PATIENCE)


@row("a retry may bring other keyword arguments", 5)
def other_kwargs(s: Side) -> Any:
    return s.t.other_kwargs.delay(x=1).get(timeout=PATIENCE)


@row("a retry waits for its countdown", [True, 1])
def countdown(s: Side) -> Any:
    began = time.monotonic()
    value = s.t.later.delay(0.8).get(timeout=PATIENCE)
    return [time.monotonic() - began >= 0.7, value]


@row("a retry may go to another queue", "prefork")
def elsewhere(s: Side) -> Any:
    return s.t.retry_elsewhere.delay().get(timeout=PATIENCE)


@row("max_retries=None retries without a bound", 5)
def endless(s: Side) -> Any:
    return s.t.endless.delay().get(timeout=PATIENCE)


@row("autoretry_for retries the exceptions that it names", 2)
def auto(s: Side) -> Any:
    return s.t.auto.delay(2).get(timeout=PATIENCE)


@row("autoretry_for gives up after max_retries with the exception", ["Counted", (2,)])
def auto_exhausted(s: Side) -> Any:
    exc = s.error(s.t.auto.delay(9))
    return [type(exc).__name__, exc.args]


@row("dont_autoretry_for fails at once", ["Trouble", ("not this", 0)])
def not_auto(s: Side) -> Any:
    exc = s.error(s.t.not_auto.delay())
    return [type(exc).__name__, exc.args]


@row("retry_backoff with a cap of 1 s and jitter retries soon", 1)
def backing_off(s: Side) -> Any:
    return s.t.backing_off.delay().get(timeout=PATIENCE)


@row("max_retries of the call's signature does not change the task's", 3)
def flaky_to_the_end(s: Side) -> Any:
    return s.t.flaky.delay(3).get(timeout=PATIENCE)


@row("one retry too many fails with the last exception", ["Trouble", ("again", 3)])
def one_too_many(s: Side) -> Any:
    exc = s.error(s.t.flaky.delay(4))
    return [type(exc).__name__, exc.args]


@row("retries in a process pool count the same (prefork)", 2)
def in_prefork(s: Side) -> Any:
    return s.t.flaky.apply_async((2,), queue=PREFORK).get(timeout=PATIENCE)


@row("a retry in a chain goes on with the chain", 4)
def in_a_chain(s: Side) -> Any:
    return (s.t.flaky.s(2) | s.t.add.s(2)).delay().get(timeout=PATIENCE)


@row("a retry with a link calls the link once", ["1"])
def with_a_link(s: Side) -> Any:
    key = s.key()
    s.t.flaky.apply_async((1,), link=s.t.push_last.s(key)).get(timeout=PATIENCE)
    s.notes(f"pushed:{key}", 1)
    s.t.echo.delay(1).get(timeout=PATIENCE)
    return s.notes(f"pushed:{key}", 1)


@row("a retry in a chord's header joins the chord", 3)
def in_a_chord(s: Side) -> Any:
    header = [s.t.flaky.s(1), s.t.flaky.s(2)]
    return chord(header, s.t.total.s()).apply_async().get(timeout=PATIENCE)


@row("Reject(requeue=True) runs the job again", 2)
def requeued(s: Side) -> Any:
    return s.t.rejected_once.delay(s.key()).get(timeout=PATIENCE)


@row("an eager retry runs at once", 2)
def eager(s: Side) -> Any:
    return s.t.flaky.apply((2,)).get()
