"""What we rely on in Celery, kombu and billiard that they do not promise.

A new version that breaks one of these breaks the promise: the pins in pyproject.toml are moved
only when these pass.
"""

from __future__ import annotations

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import billiard.pool
import celery.app.trace as celery_trace
import pytest
from celery import Celery
from celery.app import amqp
from celery.app.task import Task
from celery.concurrency import prefork
from celery.exceptions import Ignore
from celery.worker import request as celery_request
from celery.worker import state
from celery.worker.consumer import consumer as celery_consumer
from kombu.asynchronous import Hub
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from worker.broker.transport import Channel, Transport
from worker.runtime.trace import REPLACED


@pytest.fixture
def app() -> Celery:
    return Celery("contract", set_as_current=False, broker="memory://", backend="cache+memory://")


def test_celery_marks_what_it_publishes_after_a_tasks_return(app: Celery) -> None:
    # PROTOCOL 18: links and the chain join the finish; this variable says which they are
    seen: dict[str, bool] = {}

    @app.task(name="contract.work", shared=False)
    def work() -> None:
        seen["body"] = amqp._callback_publish_retry.get()

    class Watched(Task):  # type: ignore[type-arg] # not generic at run time
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            seen["link"] = amqp._callback_publish_retry.get()

    @app.task(name="contract.link", shared=False, base=Watched)
    def link(_: object) -> None: ...

    tracer = celery_trace.build_tracer(work.name, work, app=app)
    tracer("id", [], {}, {"callbacks": [dict(link.s())], "id": "id"})

    assert amqp._callback_publish_retry.get() is False
    assert seen == {"body": False, "link": True}


def test_a_replaced_task_says_so_in_its_ignore(app: Celery) -> None:
    @app.task(name="contract.replaced", shared=False, bind=True)
    def replaced(self: Any) -> None: ...

    class Signature:
        def delay(self) -> None: ...

    replaced.push_request(id="a", is_eager=False)
    try:
        with pytest.raises(Ignore, match=REPLACED):
            Task.on_replace(replaced, Signature())  # type: ignore[arg-type] # a stand-in
    finally:
        replaced.pop_request()


def test_the_hub_can_be_called_and_woken_from_any_thread() -> None:
    # PROTOCOL 23: granted claims reach the loop by `hub.call_soon` from the fetcher's thread
    hub = Hub()
    called = threading.Event()

    def work() -> None:
        called.set()
        hub.stop()

    # A timer far away: without a wake the loop would sleep until then.
    hub.call_later(30, lambda: None)
    entered = threading.Event()
    hub.call_soon(entered.set)
    loop = threading.Thread(target=hub.run_forever)
    loop.start()
    assert entered.wait(5)
    began = time.monotonic()
    hub.call_soon(work)

    assert called.wait(5) and time.monotonic() - began < 5
    loop.join(10)
    assert not loop.is_alive()
    hub.close()


def test_many_threads_lose_no_call() -> None:
    hub = Hub()
    counted: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: hub.call_soon(counted.append, number), range(2000)))
    hub.call_soon(hub.stop)
    hub.run_forever()

    assert sorted(counted) == list(range(2000))
    hub.close()


def test_celerys_consumer_forgets_what_is_reserved_when_its_connection_closes() -> None:
    # PROTOCOL 8: the reason why our consumer overrides `on_close`
    class Request:
        id = "a"

    class Nobody:
        controller = pool = timer = None
        task_buckets: dict[str, object] = {}  # noqa: RUF012 -- a stand-in, read once

    reserved = Request()
    state.task_reserved(reserved)
    try:
        celery_consumer.Consumer.on_close(Nobody())
        assert reserved not in state.reserved_requests
        assert "a" not in state.requests
    finally:
        state.reserved_requests.discard(reserved)
        state.requests.pop("a", None)


def test_our_consumer_forgets_nothing_when_its_connection_closes() -> None:
    from worker.runtime.consumer import LedgerConsumer

    class Request:
        id = "a"

    reserved = Request()
    state.task_reserved(reserved)
    try:
        LedgerConsumer.on_close(object())  # type: ignore[arg-type] # it looks at nothing
        assert reserved in state.reserved_requests
    finally:
        state.reserved_requests.discard(reserved)
        state.requests.pop("a", None)


def test_celerys_request_factory_bypasses_what_a_class_overrides() -> None:
    # The reason why our consumer makes its requests itself
    made = celery_request.create_request_cls(
        celery_request.Request, _FakeTask(), _FakePool(), "host", None, app=_FakeApp()
    )

    assert {"execute_using_pool", "on_success"} <= set(vars(made))


class _FakeTask:
    time_limit = soft_time_limit = None
    acks_late = False


class _FakePool:
    apply_async = None


class _FakeApp:
    use_fast_trace_task = False


def test_what_celerys_request_calls_is_what_ours_overrides() -> None:
    from worker.runtime.request import ClaimedRequest

    for name in ("execute_using_pool", "acknowledge", "reject", "on_accepted", "on_failure"):
        ours = inspect.signature(getattr(ClaimedRequest, name))
        theirs = inspect.signature(getattr(celery_request.Request, name))
        assert set(theirs.parameters) - {"kwargs"} <= set(ours.parameters) | {"kwargs"}, name


def test_the_tracers_take_what_we_hand_them() -> None:
    for tracer in (celery_trace.trace_task_ret, celery_trace.fast_trace_task):
        names = list(inspect.signature(tracer).parameters)
        assert names[1:6] == ["uuid", "request", "body", "content_type", "content_encoding"]
        parameters = inspect.signature(tracer).parameters.values()
        assert "app" in names or any(one.kind is one.VAR_KEYWORD for one in parameters)
    assert vars(Celery("contract", set_as_current=False))["use_fast_trace_task"] is False


def test_a_prefork_pools_children_are_listed() -> None:
    # Termination and drain look at `pool._pool._pool`: Celery's pool, billiard's, its children
    assert "self._pool = " in inspect.getsource(prefork.TaskPool.on_start)
    pool = billiard.pool.Pool(1)
    try:
        (child,) = vars(pool)["_pool"]
        assert child.pid and child.exitcode is None
    finally:
        pool.terminate()
        pool.join()


@pytest.mark.parametrize("exchange", ["DirectExchange", "TopicExchange"])
def test_an_exchange_delivers_by_put(exchange: str) -> None:
    # PROTOCOL 1: the one point that every task message passes
    source = inspect.getsource(getattr(virtual.exchange, exchange).deliver)
    put = inspect.signature(kombu_redis.Channel._put)

    assert "_put(queue, message" in source or "_put = self.channel._put" in source
    assert list(put.parameters)[:3] == ["self", "queue", "message"]
    assert Transport.Channel is Channel and "_put" in vars(Channel)


def test_a_broadcast_does_not_pass_by_put() -> None:
    # PROTOCOL 3: a broadcast with a future time goes to Redis; it has no row
    source = inspect.getsource(virtual.exchange.FanoutExchange.deliver)
    assert "_put_fanout" in source
