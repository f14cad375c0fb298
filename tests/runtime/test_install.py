"""Durability is not configuration: whatever an app is told, and however late, its jobs are rows."""

from __future__ import annotations

import gc
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import celery
import pytest
from celery import Celery, Task, states
from celery.app.amqp import AMQP
from celery.app.control import Control
from celery.signals import before_task_publish
from kombu import Connection, Producer

from tests.servers import Databases, RedisDatabases
from worker.client import Client
from worker.errors import ConfigurationError, InvalidRequest, InvalidSettings, NotJSON
from worker.jobs.states import State
from worker.runtime import durable
from worker.runtime.results import LedgerBackend
from worker.settings import Settings

#: Where nobody listens: who asks the configuration for a store finds none.
NOWHERE = "redis://127.0.0.1:9/9"
#: What the user's configuration says of all that durability decides.
THEIRS = {
    "broker_url": NOWHERE,
    "broker_read_url": NOWHERE,
    "broker_write_url": NOWHERE,
    "broker_transport": "memory",
    "broker_use_ssl": True,
    "result_backend": "cache+memory://",
    "worker_consumer": "celery.worker.consumer:Consumer",
    "task_default_queue": "theirs",
}
OLD = {
    "BROKER_URL": NOWHERE,
    "BROKER_TRANSPORT": "memory",
    "CELERY_RESULT_BACKEND": "cache+memory://",
    "CELERY_DEFAULT_QUEUE": "theirs",
}
WITH_NAMESPACE = {f"CELERY_{name.upper()}": value for name, value in THEIRS.items()}

Way = Callable[[Celery, pytest.MonkeyPatch], object]


def module(patch: pytest.MonkeyPatch) -> str:
    """The name of a module that says it."""
    made = ModuleType("their_settings")
    vars(made).update(THEIRS, django=SimpleNamespace(**WITH_NAMESPACE))
    patch.setitem(sys.modules, made.__name__, made)
    return made.__name__


def by_environment(app: Celery, patch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL"):
        patch.setenv(f"CELERY_{name}", NOWHERE)
    patch.setenv("CELERY_RESULT_BACKEND", "cache+memory://")
    app.conf.task_default_queue = "theirs"


def by_envvar(app: Celery, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("THEIR_SETTINGS", module(patch))
    app.config_from_envvar("THEIR_SETTINGS")


def one_by_one(app: Celery, patch: pytest.MonkeyPatch) -> None:
    for name, value in THEIRS.items():
        setattr(app.conf, name, value)


def by_key(app: Celery, patch: pytest.MonkeyPatch) -> None:
    for name, value in THEIRS.items():
        app.conf[name] = value


def on_configure(app: Any, patch: pytest.MonkeyPatch) -> None:
    def configure(**_: Any) -> None:
        app.config_from_object(SimpleNamespace(**THEIRS))

    app.on_configure.connect(configure, weak=False)
    app.conf.task_default_queue = "theirs"  # a configured app hears that signal no more


WAYS: dict[str, Way] = {
    "module": lambda app, patch: app.config_from_object(module(patch)),
    "attribute of a module": lambda app, patch: app.config_from_object(
        f"{module(patch)}:django", namespace="CELERY"
    ),
    "object": lambda app, _: app.config_from_object(SimpleNamespace(**THEIRS)),
    "class": lambda app, _: app.config_from_object(type("Theirs", (), THEIRS)),
    "dict": lambda app, _: app.config_from_object(dict(THEIRS)),
    "namespace": lambda app, _: app.config_from_object(
        SimpleNamespace(**WITH_NAMESPACE), namespace="CELERY"
    ),
    "force": lambda app, _: app.config_from_object(SimpleNamespace(**THEIRS), force=True),
    "old names": lambda app, _: app.config_from_object(dict(OLD), force=True),
    "envvar": by_envvar,
    "environment": by_environment,
    "update": lambda app, _: app.conf.update(THEIRS),
    "attributes": one_by_one,
    "keys": by_key,
    "defaults": lambda app, _: cast(Any, app).add_defaults(dict(THEIRS)),
    "lazy defaults": lambda app, _: app.add_defaults(lambda: dict(THEIRS)),
    "signal": on_configure,
    "cmdline": lambda app, _: app.config_from_cmdline(
        ["broker.url=" + NOWHERE, "result.backend=cache+memory://", "task.default_queue=theirs"]
    ),
}


#: Ways that every kind of app goes.
THOROUGHLY = [WAYS[name] for name in ("module", "namespace", "force", "environment", "update")]


class TheirApp(Celery):
    """A user's class of apps."""


class TheirAMQP(AMQP):  # type: ignore[misc] # Celery's class is not typed
    """A user's class."""


class TheirControl(Control):  # type: ignore[misc] # ditto
    """A user's class."""


def plain(**options: Any) -> Celery:
    return Celery("shop", set_as_current=False, **options)


def touched() -> Celery:
    app: Any = plain(broker="memory://", backend="cache+memory://")
    assert not app.conf.task_always_eager
    assert all((app.backend, app.pool, app.amqp.producer_pool, app.control, app.events, app.Worker))
    assert app.amqp.send_task_message
    app.finalize()
    return app  # type: ignore[no-any-return]


def current() -> Any:
    Celery("shop").set_default()
    return celery.current_app


KINDS: dict[str, Callable[[], Celery]] = {
    "plain": plain,
    "with stores": lambda: plain(broker=NOWHERE, backend="rpc://"),
    "touched": touched,
    "subclass": lambda: TheirApp("shop", amqp=TheirAMQP, control=TheirControl),
    "current": current,
    "backend class": lambda: plain(backend="celery.backends.cache:CacheBackend"),
    "not finalizing": lambda: plain(autofinalize=False),
    "with settings": lambda: plain(changes=dict(THEIRS), namespace="CELERY"),
}


@pytest.fixture(scope="module")
def stores(databases: Databases, redis_databases: RedisDatabases) -> Iterator[Client]:
    """One ledger for all these tests: each looks for its own jobs only."""
    settings = Settings.load(database_url=databases.new(), redis_url=redis_databases.new())
    with Client(settings) as made:
        yield made
    gc.collect()  # kombu's transports keep their descriptors until then


@pytest.fixture
def client(stores: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The ledger beside the app; its stores stand in the environment."""
    monkeypatch.setenv("DATABASE_URL", stores.settings.database_url.get_secret_value())
    monkeypatch.setenv("REDIS_URL", stores.settings.redis_url.get_secret_value())
    return stores


@pytest.fixture(autouse=True)
def _no_app_stays_current() -> Iterator[None]:
    state: Any = celery._state
    before = state.default_app, state._tls.current_app
    yield
    state.default_app, state._tls.current_app = before


def is_durable(app: Any, client: Client, queue: str | None = None) -> None:
    """What the app sends is a row, and what it reads of it is the ledger's."""
    sent = app.send_task("shop.order", [1])

    job = client.job(sent.id)
    assert (job.task, job.state) == ("shop.order", State.QUEUED)
    assert queue in (None, job.queue)
    assert sent.state == states.PENDING
    client.cancel(sent.id)
    assert sent.state == app.AsyncResult(sent.id).state == states.REVOKED
    assert client.settings.redis_url.get_secret_value().endswith(
        app.connection_for_read().as_uri(include_password=True).partition("://")[2]
    )


@pytest.mark.parametrize("order", ["before", "after", "later"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_app_is_durable_whatever_configures_it_and_when(
    client: Client, way: Way, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in KINDS if order == "after" and way in THOROUGHLY else ["plain", "touched"]:
        app: Any = KINDS[kind]()
        if order == "before":
            way(app, monkeypatch)
        app = durable(app)
        if order == "later":  # than the first use
            is_durable(app, client)
        if order != "before":
            way(app, monkeypatch)
        is_durable(app, client, None if order == "later" else "theirs")
        # What was configured is what the user reads.
        assert app.conf.result_backend != "worker.runtime.results:LedgerBackend", kind
        app.close()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", ["update", "namespace", "environment"])
def test_without_a_redis_url_the_broker_is_the_apps_own_read_at_the_first_use(
    client: Client, way: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL")
    url = client.settings.redis_url.get_secret_value()

    def configure(app: Celery) -> None:
        if way == "environment":
            monkeypatch.setenv("CELERY_BROKER_URL", url)
        elif way == "namespace":
            app.config_from_object({"CELERY_BROKER_URL": url}, namespace="CELERY")
        else:
            app.conf.update(broker_url=url)

    app = Celery("shop", set_as_current=False)
    if order == "before":
        configure(app)
    durable(app)
    if order == "after":
        configure(app)

    is_durable(app, client)
    app.close()


FAULTS = {
    "none": ({}, "REDIS_URL is not set, and the app has no broker_url; "),
    "foreign": ({"broker_url": "amqp://u:secret@h"}, "broker_url begins with amqp://, but "),
    "wrong": (
        {"broker_url": "redis://u:secret@h:x/0"},
        r"broker_url is redis://\*\*\*@h:x/0; the port is no number",
    ),
    "several": (
        {"broker_url": ["redis://u:secret@h/0", "rediss://i/0"]},
        "broker_url names several",
    ),
    "task": ({"task_serializer": "pickle"}, "task_serializer is 'pickle', but "),
    "result": ({"result_serializer": "yaml"}, "result_serializer is 'yaml', but "),
    "accept": ({"accept_content": ["json", "pickle"]}, "accept_content allows more than JSON"),
    "prefix": ({"broker_transport_options": {"global_keyprefix": "a"}}, "global_keyprefix is not"),
    "spawn": ({"worker_pool_start_method": "spawn"}, "worker_pool_start_method must be 'fork'"),
}


@pytest.mark.parametrize(("conf", "said"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_durable_is_refused_at_the_first_use_in_one_sentence(
    client: Client, conf: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL")
    late = {"broker_url": client.settings.redis_url.get_secret_value()} if conf else {}
    app: Any = durable(Celery("shop", set_as_current=False))
    app.config_from_object({**late, **conf})

    for use in (
        lambda: app.send_task("shop.order", task_id="refused"),
        lambda: app.AsyncResult("refused").state,
        app.connection_for_read,
    ):
        with pytest.raises(ConfigurationError, match=f"^{said}") as told:
            use()
        assert "secret" not in str(told.value) and "\n" not in str(told.value)
    assert not client.summary(["refused"])

    app.conf.update({**{name: None for name in conf}, **DEFAULT, **late})
    if late:  # it was mended
        is_durable(app, client)
    app.close()


#: As Celery has them.
DEFAULT = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "broker_transport_options": {},
}


def test_what_is_known_to_be_unsupported_is_refused_at_once(client: Client) -> None:
    app = Celery("shop", set_as_current=False, task_serializer="pickle")

    with pytest.raises(ConfigurationError, match="task_serializer is 'pickle'"):
        durable(app)
    assert not app.configured  # type: ignore[attr-defined] # Celery's


def test_what_the_environment_lacks_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(InvalidSettings, match="DATABASE_URL is not set"):
        durable(Celery("shop", set_as_current=False))


def test_a_task_in_another_format_is_refused_before_it_has_an_id(client: Client) -> None:
    app: Any = durable(Celery("shop", set_as_current=False))

    def work() -> None: ...

    pickled = app.task(name="shop.pickled", serializer="pickle", shared=False)(work)
    order: Any = app.task(name="shop.order", shared=False)(work)

    sends: list[Callable[[], object]] = [
        lambda: order.apply_async(task_id="refused", serializer="pickle"),
        lambda: pickled.apply_async(task_id="refused"),
        lambda: app.send_task("shop.order", task_id="refused", serializer="msgpack"),
        lambda: app.signature("shop.order", serializer="yaml").apply_async(task_id="refused"),
    ]
    for send in sends:
        with pytest.raises(ConfigurationError, match=r"serializer = '\w+', but a durable app"):
            send()
    headers = {"task": "shop.order", "id": "refused"}
    with app.connection_for_write() as own, pytest.raises(NotJSON, match="application/x-python-s"):
        Producer(own).publish(
            [[], {}, {}], routing_key="celery", headers=headers, serializer="pickle"
        )
    assert not client.summary(["refused"])
    assert client.job(order.apply_async(serializer="json").id)
    app.close()


@pytest.mark.parametrize("compression", ["zlib", "gzip", "bzip2", "lzma"])
@pytest.mark.parametrize("protocol", [1, 2])
def test_a_compressed_body_stands_plain_in_its_row(
    client: Client, compression: str, protocol: int
) -> None:
    app: Any = durable(Celery("shop", set_as_current=False, task_protocol=protocol))

    order = app.signature("shop.order", ["a chair"]).set(compression=compression)
    sent = (order | app.signature("shop.pack")).apply_async() if protocol == 2 else order.delay()

    message = client.job(sent.parent.id if protocol == 2 else sent.id).message
    assert message is not None
    args, _, embedded = json.loads(message.body)
    assert args == ["a chair"]
    assert [step["task"] for step in embedded.get("chain") or ()] == ["shop.pack"] * (protocol - 1)
    assert "compression" not in json.loads(message.envelope)["headers"]
    app.close()


def test_a_task_is_sent_by_no_other_broker(client: Client) -> None:
    app: Any = durable(Celery("shop", set_as_current=False))
    other: Any = durable(Celery("other", set_as_current=False))
    url = client.settings.redis_url.get_secret_value()

    for theirs in (Connection(url), Connection("memory://"), app.connection("memory://"),
                   other.connection_for_write()):  # fmt: skip
        with theirs, pytest.raises(ConfigurationError, match="leave out connection= and producer="):
            app.send_task("shop.order", task_id="refused", connection=theirs)
        with theirs, pytest.raises(ConfigurationError, match="leave out connection= and producer="):
            app.send_task("shop.order", task_id="refused", producer=Producer(theirs))
    assert not client.summary(["refused"])

    with app.connection_for_write() as own, app.connection(url) as same:
        assert client.job(app.send_task("shop.order", connection=own).id)
        assert client.job(app.send_task("shop.order", producer=Producer(same)).id)
    app.close()
    other.close()


def test_a_tasks_own_result_backend_hides_nothing(client: Client) -> None:
    stock = Celery("stock", set_as_current=False, backend="cache+memory://", broker="memory://")
    app: Any = Celery("shop", set_as_current=False)

    class Own(Task[Any, Any]):
        backend = stock.backend

    def work() -> None: ...

    tasks = [
        app.task(name="shop.option", backend=stock.backend, shared=False)(work),
        app.task(name="shop.base", base=Own, shared=False)(work),
    ]
    durable(app)

    for task in tasks:
        sent = task.delay()
        client.cancel(sent.id)
        assert sent.state == task.AsyncResult(sent.id).state == states.REVOKED
    app.close()


def _order() -> None: ...


def test_a_task_that_another_app_has_made_is_the_sending_apps(client: Client) -> None:
    stock: Any = Celery(
        "stock", set_as_current=False, backend="cache+memory://", broker="memory://"
    )
    task = stock.task(name="stock.order", shared=False)(_order)
    app: Any = durable(Celery("shop", set_as_current=False))
    app.register_task(task)

    sent = task.delay()

    client.cancel(sent.id)
    assert sent.state == task.AsyncResult(sent.id).state == states.REVOKED
    assert app.tasks["stock.order"].backend is app.backend
    app.close()


def test_a_header_does_not_replace_the_id_that_is_given(client: Client) -> None:
    app: Any = durable(Celery("shop", set_as_current=False))

    with pytest.raises(ConfigurationError, match="leave it out of headers="):
        app.send_task("shop.order", task_id="given", headers={"id": "other"})
    assert not client.summary(["given", "other"])
    assert app.send_task("shop.order", task_id="given", headers={"id": "given"}).id == "given"
    assert client.job("given")
    app.close()


#: What a handler of `before_task_publish` does to a message, and what is said of it.
CHANGES: dict[str, tuple[Callable[[dict[str, Any], Any], object], str]] = {
    "another id": (lambda headers, _: headers.update(id="other"), "into job other; a handler"),
    "no id": (lambda headers, _: headers.pop("id"), "into no task message; a handler"),
    "no task": (lambda headers, _: headers.pop("task"), "into no task message; a handler"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_handler_does_not_replace_the_id_that_is_given(
    client: Client, change: Callable[[dict[str, Any], Any], object], said: str
) -> None:
    app: Any = durable(Celery("shop", set_as_current=False))

    def handler(headers: dict[str, Any], body: Any, **_: Any) -> None:
        change(headers, body)

    before_task_publish.connect(handler)
    try:
        with pytest.raises(InvalidRequest, match=f"^Job promised was changed on its way {said}"):
            app.send_task("shop.order", task_id="promised")
    finally:
        before_task_publish.disconnect(handler)
    assert not client.summary(["promised", "other"])
    app.conf.task_protocol = 1
    sent = app.send_task("shop.order")
    message = client.job(sent.id).message
    assert message is not None and "ledger_promised" not in message.envelope
    app.close()


def test_a_durable_app_and_a_stock_one_do_not_meet(client: Client) -> None:
    stock: Any = Celery(
        "stock", set_as_current=False, broker="memory://", backend="cache+memory:///"
    )
    app: Any = durable(Celery("shop", set_as_current=False))

    sent = stock.send_task("stock.order")

    is_durable(app, client)
    assert not client.summary([sent.id])
    assert type(stock) is Celery and not isinstance(stock.backend, LedgerBackend)
    assert stock.connection().transport_cls == "memory"
    app.close()


def test_an_app_stays_what_its_user_made_it(client: Client) -> None:
    app: Any = durable(KINDS["subclass"]())

    assert isinstance(app, TheirApp) and repr(app).startswith("<TheirApp shop at ")
    assert isinstance(app.amqp, TheirAMQP) and isinstance(app.control, TheirControl)
    copied = pickle.loads(pickle.dumps(app))
    assert isinstance(copied, TheirApp) and copied is not app
    is_durable(copied, client)
    given = pickle.loads(pickle.dumps(durable(Celery("given"), client.settings)))
    is_durable(given, client)
    for one in (app, copied, given):
        one.close()


def test_once_more_is_the_same_and_another_thing_is_refused(client: Client) -> None:
    app = durable(Celery("shop", set_as_current=False))

    assert durable(app) is app
    other = client.settings.model_copy(update={"queue": "other"})
    with pytest.raises(ConfigurationError, match="is durable already, with other settings"):
        durable(app, other)
    with pytest.raises(ConfigurationError, match=r"durable\(\) takes a Celery app, not str"):
        durable("shop.app")  # type: ignore[arg-type] # what a user may write


def test_what_is_overridden_is_said_once_without_secrets(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = durable(Celery("shop", set_as_current=False))
    app.conf.update(result_backend="redis://:secret@h/1", broker_url="amqp://u:secret@h")

    is_durable(app, client)
    is_durable(app, client)

    (record,) = [one for one in caplog.records if one.name == "worker.runtime.install"]
    assert "broker_url (amqp), result_backend (redis)" in record.getMessage()
    assert "secret" not in caplog.text
    app.close()


def test_a_mirror_that_cannot_be_written_changes_nothing(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an app that names Django's result backend, where there is no Django
    app: Any = durable(Celery("shop", set_as_current=False))
    app.conf.result_backend = "django-db"
    sent = app.send_task("shop.order")

    app.backend.mark_as_revoked(sent.id, "not wanted")

    assert sent.state == states.REVOKED
    assert "result_backend (django-db, which is written too) is not used" in caplog.text
    assert f"Job {sent.id} is not written to the app's own result backend" in caplog.text
    app.close()
