"""What we rely on in Celery, kombu and billiard that they do not promise.

A new version that breaks one of these breaks the promise: the pins in pyproject.toml are moved
only when these pass.
"""

from __future__ import annotations

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import billiard.pool
import celery.app.trace as celery_trace
import pytest
from celery import Celery
from celery.app import amqp
from celery.app.task import Task
from celery.apps import worker as celery_worker
from celery.concurrency import prefork
from celery.exceptions import Ignore
from celery.worker import WorkController, state
from celery.worker import request as celery_request
from celery.worker.consumer import consumer as celery_consumer
from kombu import Connection
from kombu.asynchronous import Hub
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from worker.broker.transport import Channel, QoS, Transport
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


def test_a_broadcast_is_published_to_its_topics_and_no_more() -> None:
    # worker/broker/transport.py does the same, and notes how many heard it
    source = inspect.getsource(kombu_redis.Channel._put_fanout)
    for line in (
        "publish_batch = kwargs.pop('_publish_batch', None)",
        "topics = self._get_publish_topics(exchange, routing_key)",
        "payload = dumps(message)",
        "client.publish(topic, payload)",
    ):
        assert line in source
    assert len(source.splitlines()) == 12, "something was added"


def test_a_poller_restores_messages_when_the_loop_begins() -> None:
    # worker/broker/transport.py overrides what it calls: a full Redis must not end a worker
    called: list[str] = []

    class Watched(QoS):
        def __init__(self) -> None: ...

        def restore_visible(self, *args: Any, **kwargs: Any) -> None:
            called.append("restored")

    class OneChannel:
        qos = Watched()
        unacked_restore_limit = unacked_restore_throttle = None

    poller = kombu_redis.MultiChannelPoller()
    poller.add(OneChannel())
    poller.on_poll_init(None)

    assert called == ["restored"]
    assert Channel.QoS is QoS and "restore_visible" in vars(kombu_redis.QoS)


def test_a_consumer_waits_for_redis_by_its_connections_own_method(app: Celery) -> None:
    # worker/runtime/consumer.py binds the pauses there
    asked: dict[str, Any] = {}

    class Lazy:
        def ensure_connection(self, errback: Any, max_retries: Any, **options: Any) -> Lazy:
            asked.update(options, max_retries=max_retries)
            return self

    class Waiting:
        first_connection_attempt = False
        broker_connection_retry_attempt = 0

    app.conf.broker_connection_retry_on_startup = True
    app.conf.broker_connection_max_retries = None
    waiting, lazy = Waiting(), Lazy()
    waiting.app = app  # type: ignore[attr-defined] # a stand-in
    assert celery_consumer.Consumer.ensure_connected(waiting, lazy) is lazy

    assert asked["max_retries"] is None  # for ever
    theirs = inspect.signature(Connection._ensure_connection).parameters
    assert {"interval_start", "interval_step", "interval_max"} <= set(theirs) - set(asked)


def test_a_call_of_the_hub_repeats_until_it_is_cancelled() -> None:
    # worker/runtime/health.py: the beat of the event loop
    hub = Hub()
    beats: list[None] = []

    def beat() -> None:
        beats.append(None)
        if len(beats) == 3:
            entry.cancel()
            hub.call_later(0.1, hub.stop)  # ten beats later

    entry = hub.call_repeatedly(0.01, beat)
    hub.run_forever()

    assert len(beats) == 3
    hub.close()


def test_a_worker_tells_by_a_signal_that_it_is_set_up_and_its_log_too() -> None:
    # worker/runtime/prepare.py says there at which port health is served
    init = inspect.getsource(celery_worker.Worker.on_init_blueprint)
    start = inspect.getsource(celery_worker.Worker.on_start)

    assert "self.setup_logging()" in init  # before it starts
    assert "instance=self" in start[start.index("signals.celeryd_after_setup.send(") :]


def test_who_sends_an_event_waits_for_who_flushes_them(app: Celery) -> None:
    # Why worker/runtime/announcer.py exists: a flush holds the mutex while it waits for Redis
    held: list[bool] = []

    class Slow:
        def publish(self, *args: Any, **kwargs: Any) -> None:
            held.append(dispatcher.mutex.locked())

    connection = app.connection_for_write()
    dispatcher = app.events.Dispatcher(connection, buffer_group={"task"}, buffer_limit=3)
    dispatcher.producer = Slow()
    for _ in range(3):  # the third of them flushes
        dispatcher.send("task-started", uuid="a")
    assert held == [True]
    dispatcher.send("worker-heartbeat")
    assert held == [True, True]
    # The announcer's own is told to keep nothing, and to raise
    assert {"buffer_while_offline", "buffer_group", "buffer_limit"} <= set(
        inspect.signature(type(dispatcher)).parameters
    )


def test_a_request_asks_its_eventer_before_it_sends() -> None:
    # The announcer stands there
    sent: list[tuple[str, str]] = []

    class Eventer:
        enabled = False

        def send(self, event: str, *, uuid: str) -> None:
            sent.append((event, uuid))

    class Asked:
        id = "a"
        task = SimpleNamespace(send_events=True)
        _eventer = Eventer()

    celery_request.Request.send_event(Asked(), "task-started")
    Asked._eventer.enabled = True
    celery_request.Request.send_event(Asked(), "task-started")

    assert sent == [("task-started", "a")]


def test_every_connection_of_an_app_is_made_at_one_point(app: Celery) -> None:
    # worker/runtime/durable_app.py: what configuration says of the broker is not asked
    asked: list[str | None] = []

    class Watched(Celery):
        def _connection(self, url: str | None, **options: Any) -> Any:
            asked.append(url)
            return super()._connection(url, **options)  # type: ignore[misc] # private

    watched: Any = Watched("contract", set_as_current=False, broker="memory://")
    for connect in (watched.connection, watched.connection_for_read, watched.connection_for_write):
        connect(transport_options={"a": 1})
    with watched.connection_or_acquire(), watched.producer_or_acquire():
        pass
    assert set(asked) == {"memory://"} and len(asked) == 5  # two pools
    source = inspect.getsource(Celery)
    assert source.count("amqp.Connection(") == 1


def test_an_apps_backend_sender_and_early_settings_are_where_we_take_hold_of_them(
    app: Celery,
) -> None:
    # worker/runtime/durable_app.py, worker/runtime/configuration.py
    early: Any = Celery("contract", set_as_current=False, task_serializer="yaml")
    early.conf.update(result_serializer="pickle")
    assert not early.configured
    assert (early._preconf["task_serializer"], early._preconf["result_serializer"]) == (
        "yaml",
        "pickle",
    )
    assert "self._get_backend()" in inspect.getsource(Celery.backend.fget)  # type: ignore[attr-defined] # a property
    assert "_create_task_sender()" in inspect.getsource(amqp.AMQP.send_task_message.func)
    assert "task_type=self" in inspect.getsource(Task.apply_async)


def test_a_worker_reads_its_settings_before_the_signal_and_makes_its_consumer_after_it() -> None:
    # worker/runtime/prepare.py decides between the two
    made = inspect.getsource(WorkController.__init__)
    assert made.index("setup_defaults(") < made.index("setup_instance(")
    instance = inspect.getsource(WorkController.setup_instance)
    assert instance.index("worker_init.send") < instance.index("blueprint.apply")


def test_remote_commands_are_looked_up_in_what_the_mailbox_is_given() -> None:
    # worker/runtime/panel.py puts its own answers in the place of Celery's
    from celery.app.control import Control
    from celery.worker import control, pidbox
    from kombu.pidbox import Mailbox, Node

    assert "self.Mailbox(" in inspect.getsource(Control.__init__)
    assert list(inspect.signature(Mailbox.Node).parameters)[1:] == [
        "hostname",
        "state",
        "channel",
        "handlers",
    ]
    assert "mailbox.Node(" in inspect.getsource(pidbox.Pidbox.__init__)
    assert "self.handlers[method]" in inspect.getsource(Node.handle)
    assert control.Panel.data["revoke"] is control.revoke
    assert isinstance(state.revoked.discard, type(state.revoked.add))


def test_a_connection_is_shown_by_the_alias_of_its_transport_and_cloned_without_it() -> None:
    # worker/broker/transport.py names our transports `redis` and `sentinel`
    from kombu import connection

    assert Connection.resolve_aliases is connection.resolve_aliases
    assert "_info(resolve=False)" in inspect.getsource(Connection.clone)


def test_a_purge_and_a_deleted_queue_pass_the_channels_own_methods() -> None:
    # worker/broker/transport.py
    assert "self._purge(queue)" in inspect.getsource(virtual.Channel.queue_purge)
    assert "self._delete(" in inspect.getsource(virtual.Channel.queue_delete)
    assert "auto_delete_queues.add(queue)" in inspect.getsource(kombu_redis.Channel._new_queue)


def test_a_worker_makes_its_app_the_default_one_and_marks_it() -> None:
    # `run_claimed` takes that app, whatever a task of an earlier job has made current
    source = inspect.getsource(celery_trace.setup_worker_optimizations)
    assert "app.set_default()" in source and "app.use_fast_trace_task = True" in source
