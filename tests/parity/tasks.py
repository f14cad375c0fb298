"""The tasks of the parity rows: one module for the stock app and for the durable one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import celery
import redis
from celery import Celery
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject

# As in `tests.parity.side`, which workers do without.
chain: Any = celery.chain
chord: Any = celery.chord
group: Any = celery.group


class Trouble(Exception):
    """A failure with two arguments, importable where results are read."""


class Counted(Exception):
    """A failure that is retried automatically."""


#: The fields of `self.request` that a row asks for, as JSON can hold them.
FIELDS = (
    "id",
    "task",
    "args",
    "kwargs",
    "retries",
    "is_eager",
    "called_directly",
    "delivery_info",
    "reply_to",
    "correlation_id",
    "root_id",
    "parent_id",
    "group",
    "chord",
    "chain",
    "callbacks",
    "errbacks",
    "utc",
    "eta",
    "expires",
    "timelimit",
    "headers",
    "origin",
    "argsrepr",
    "kwargsrepr",
    "shadow",
    "stamps",
    "stamped_headers",
    "replaced_task_nesting",
    "ignore_result",
    "lang",
    "hostname",
    "group_index",
    "properties",
    "logfile",
    "loglevel",
    "taskset",
)


def scratch() -> Any:
    """Where tasks and signal handlers note what they saw; neither broker nor results."""
    return redis.Redis.from_url(os.environ["PARITY_SCRATCH"], decode_responses=True)


def define(app: Celery) -> SimpleNamespace:
    """Every task, on `app`; the same names on both sides."""
    note = scratch()
    t = SimpleNamespace()

    def task(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            decorate: Any = app.task(name=f"parity.{function.__name__}", shared=False, **options)
            setattr(t, function.__name__, decorate(function))
            return function

        return register

    @task()
    def add(x: Any, y: Any) -> Any:
        return x + y

    @task()
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @task()
    def echo(value: Any = None) -> Any:
        return value

    @task()
    def fail(*args: Any) -> None:
        raise Trouble("no luck", 7)

    @task()
    def fail_builtin() -> None:
        raise ValueError("not a number")

    @task()
    def odd() -> Any:
        return object()

    @task(bind=True)
    def request(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: _plain(getattr(self.request, name, "absent")) for name in FIELDS}

    @task()
    def hold(gate: str) -> str:
        """Wait until the row opens the gate."""
        note.rpush(f"begun:{gate}", os.getpid())
        note.blpop([f"gate:{gate}"], timeout=20)
        return gate

    @task(track_started=True)
    def hold_tracked(gate: str) -> str:
        note.rpush(f"begun:{gate}", os.getpid())
        note.blpop([f"gate:{gate}"], timeout=20)
        return gate

    @task(bind=True)
    def progress(self: Any, gate: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 3, "of": 7})
        note.rpush(f"begun:{gate}", os.getpid())
        note.blpop([f"gate:{gate}"], timeout=20)
        return gate

    @task(bind=True, max_retries=3, default_retry_delay=0)
    def flaky(self: Any, times: int, key: str = "") -> int:
        if self.request.retries < times:
            raise self.retry(exc=Trouble("again", self.request.retries))
        return int(self.request.retries)

    @task(bind=True, max_retries=1, default_retry_delay=0)
    def hopeless(self: Any, say: bool) -> None:
        if say:
            raise self.retry(exc=Trouble("for good", 1))
        raise self.retry()

    @task(bind=True, max_retries=5)
    def later(self: Any, seconds: float) -> int:
        if not self.request.retries:
            raise self.retry(exc=Trouble("later", 0), countdown=seconds)
        return int(self.request.retries)

    @task(bind=True, max_retries=2, default_retry_delay=0)
    def other_args(self: Any, x: int) -> int:
        if not self.request.retries:
            raise self.retry(args=(x * 10,))
        return x

    @task(bind=True, max_retries=2, default_retry_delay=0)
    def other_kwargs(self: Any, x: int = 1) -> int:
        if not self.request.retries:
            raise self.retry(kwargs={"x": 5})
        return x

    @task(bind=True, max_retries=2)
    def without_throw(self: Any) -> int:
        if not self.request.retries:
            self.retry(throw=False, countdown=0)
        return int(self.request.retries)

    @task(bind=True, max_retries=2)
    def retry_elsewhere(self: Any) -> Any:
        if not self.request.retries:
            raise self.retry(countdown=0, queue="prefork")
        return self.request.delivery_info["routing_key"]

    @task(bind=True, max_retries=None, default_retry_delay=0)
    def endless(self: Any) -> int:
        if self.request.retries < 5:
            raise self.retry()
        return int(self.request.retries)

    @task(bind=True, autoretry_for=(Counted,), retry_kwargs={"max_retries": 2, "countdown": 0})
    def auto(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise Counted(self.request.retries)
        return int(self.request.retries)

    @task(
        bind=True,
        autoretry_for=(Exception,),
        dont_autoretry_for=(Trouble,),
        retry_kwargs={"countdown": 0},
    )
    def not_auto(self: Any) -> None:
        raise Trouble("not this", self.request.retries)

    @task(
        bind=True, autoretry_for=(Counted,), retry_backoff=1, retry_backoff_max=1, retry_jitter=True
    )
    def backing_off(self: Any) -> int:
        if not self.request.retries:
            raise Counted(0)
        return int(self.request.retries)

    @task()
    def ignored() -> None:
        raise Ignore

    @task(bind=True)
    def says_success(self: Any) -> None:
        self.update_state(state="SUCCESS", meta={"said": True})
        raise Ignore

    @task(bind=True)
    def says_failure(self: Any) -> None:
        meta = {"exc_type": "ValueError", "exc_message": ["said"], "exc_module": "builtins"}
        self.update_state(state="FAILURE", meta=meta)
        raise Ignore

    @task()
    def rejected() -> None:
        raise Reject("not mine", requeue=False)

    @task(acks_late=True)
    def rejected_late() -> None:
        raise Reject("not mine", requeue=False)

    @task(acks_late=True)
    def rejected_once(key: str) -> int:
        if int(note.incr(f"count:{key}")) == 1:
            raise Reject("once more", requeue=True)
        return int(note.get(f"count:{key}") or 0)

    @task(bind=True, acks_late=True)
    def redelivered(self: Any, key: str) -> Any:
        if int(note.incr(f"count:{key}")) == 1:
            raise Reject("once more", requeue=True)
        return self.request.delivery_info.get("redelivered")

    @task()
    def leave(code: int) -> None:
        sys.exit(code)

    @task(ignore_result=True)
    def silent(key: str) -> str:
        note.rpush(f"ran:{key}", 1)
        return "unheard"

    @task(ignore_result=True)
    def silent_failure(key: str) -> str:
        note.rpush(f"ran:{key}", 1)
        raise Trouble("unheard", 1)

    @task(soft_time_limit=1)
    def soft_limited() -> None:
        time.sleep(10)

    @task(time_limit=1)
    def hard_limited() -> None:
        time.sleep(10)

    @task()
    def count(key: str, *args: Any) -> int:
        return int(note.incr(f"count:{key}"))

    @task()
    def push(key: str, value: Any = None) -> Any:
        note.rpush(f"pushed:{key}", str(value))
        return value

    @task()
    def push_last(value: Any, key: str) -> Any:
        note.rpush(f"pushed:{key}", str(value))
        return value

    @task()
    def push_field(seen: dict[str, Any], key: str, field: str) -> None:
        note.rpush(f"pushed:{key}", str(seen[field]))

    @task()
    def old_errback(task_id: str, key: str) -> None:
        note.rpush(f"errback:{key}", task_id)

    @task()
    def new_errback(request: Any, exc: Any, traceback: Any, key: str) -> None:
        note.rpush(f"errback:{key}", f"{request.id} {type(exc).__name__} {exc}")

    @task(bind=True)
    def replaced_by_task(self: Any, x: int) -> Any:
        raise self.replace(t.add.s(x, 1))

    @task(bind=True)
    def replaced_by_chain(self: Any, x: int) -> Any:
        raise self.replace(chain(t.add.s(x, 1), t.add.s(1)))

    @task(bind=True)
    def replaced_by_group(self: Any, x: int) -> Any:
        raise self.replace(group(t.add.s(x, 1), t.add.s(x, 2)))

    @task(bind=True)
    def replaced_by_chord(self: Any, x: int) -> Any:
        raise self.replace(chord([t.add.s(x, 1), t.add.s(x, 2)], t.total.s()))

    @task(bind=True)
    def replaced_badly(self: Any) -> Any:
        raise self.replace(chain(t.fail.si(), t.echo.si(1)))

    @task(bind=True)
    def grows(self: Any) -> int:
        self.add_to_chord(t.echo.s(5))
        return 1

    @task(bind=True)
    def children(self: Any) -> str:
        return str(t.echo.delay(1).id)

    @task()
    def waits_for_child() -> Any:
        return t.echo.delay(1).get(timeout=5)

    @task()
    def waits_allowed() -> Any:
        from celery.result import allow_join_result

        with allow_join_result():
            return t.echo.delay(1).get(timeout=5)

    @task(bind=True)
    def spawns(self: Any) -> Any:
        return t.request.delay().id

    @task(base=AbortableTask, bind=True)
    def abortable(self: Any, gate: str) -> bool:
        note.rpush(f"begun:{gate}", os.getpid())
        note.blpop([f"gate:{gate}"], timeout=20)
        return bool(self.is_aborted())

    @task(rate_limit="100/s")
    def limited() -> int:
        return 1

    @task(bind=True)
    def sends_event(self: Any) -> None:
        self.send_event("task-custom", colour="green")

    @task(bind=True)
    def signature_of_self(self: Any) -> Any:
        return dict(self.s(1))["task"]

    @task(shadow_name=lambda task, args, kwargs, options: "parity.shadowed")
    def shadowed() -> None:
        return None

    @task(typing=False)
    def untyped(x: int) -> int:
        return x

    class Hooked(app.Task):  # type: ignore[name-defined, misc] # a class that the app makes
        """Notes each of its hooks."""

        def _note(self, hook: str, task_id: str) -> None:
            note.rpush(f"hooks:{task_id}", f"{hook} {app.AsyncResult(task_id).state}")

        def before_start(self, task_id: str, *args: Any) -> None:
            note.rpush(f"hooks:{task_id}", "before_start")

        def on_success(self, retval: Any, task_id: str, *args: Any) -> None:
            self._note("on_success", task_id)

        def on_failure(self, exc: BaseException, task_id: str, *args: Any) -> None:
            self._note("on_failure", task_id)

        def on_retry(self, exc: BaseException, task_id: str, *args: Any) -> None:
            self._note("on_retry", task_id)

        def after_return(self, status: str, retval: Any, task_id: str, *args: Any) -> None:
            self._note(f"after_return={status}", task_id)

    @task(base=Hooked, bind=True, max_retries=1, default_retry_delay=0)
    def hooked(self: Any, how: str) -> str:
        if how == "fail" or (how == "retry" and not self.request.retries):
            if how == "retry":
                raise self.retry(exc=Trouble("again", 0), countdown=0.1)
            raise Trouble("hooked", 1)
        return how

    return t


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
