"""What a Celery app's configuration says that matters here: read late, because it may come late."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from celery import Celery
from celery.app.defaults import DEFAULTS
from kombu.serialization import registry

from worker.broker.address import with_options
from worker.errors import ConfigurationError, InvalidSettings
from worker.settings import Settings

#: The content type of every job and every result.
JSON: Final = "application/json"
#: Schemes of a broker's address that a durable app can use.
_REDIS: Final = ("redis", "rediss", "sentinel")
#: What `durable()` decides for a worker, whatever the app's configuration says.
WORKER: Final = {
    "worker_consumer": "worker.runtime.consumer:LedgerConsumer",
    # One slot, one claim: prefetching is the inventory's business.
    "worker_prefetch_multiplier": 1,
    "worker_enable_prefetch_count_reduction": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}
#: What it decides for every process that keeps a connection to Redis. Without end: a worker that
#: ends in an outage loses its results.
CONNECTION: Final = {
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}


#: Result backends of databases, which are written beside the ledger: see `worker.runtime.mirror`.
MIRRORED: Final = frozenset(
    {
        "django-db",
        "django_celery_results.backends:DatabaseBackend",
        "django_celery_results.backends.database:DatabaseBackend",
    }
)


def refuse_unsupported(app: Celery) -> None:
    """Refuse settings under which a job would be accepted and then fail.

    Raises:
        ConfigurationError: naming the setting.
    """
    _check(app.conf.get)


def refuse_early(app: Celery) -> None:
    """`refuse_unsupported` of what is known before the configuration is loaded.

    It is not loaded for this: what `config_from_object` does later depends on that.

    Raises:
        ConfigurationError: naming the setting.
    """
    known: Any = app
    if known.configured:
        refuse_unsupported(app)
    else:
        _check(lambda key: known._preconf.get(key, DEFAULTS.get(key)))


def _check(get: Callable[[str], Any]) -> None:
    for name in ("task_serializer", "result_serializer"):
        if not is_json(get(name)):
            raise ConfigurationError(
                f"{name} is {get(name)!r}, but a durable app speaks JSON only; set it to 'json'."
            )
    for name in ("accept_content", "result_accept_content"):
        accepted = get(name)
        if accepted and not all(is_json(one) for one in accepted):
            raise ConfigurationError(
                f"{name} allows more than JSON, but a durable app speaks JSON only; set it to"
                " ['json']."
            )
    if (get("broker_transport_options") or {}).get("global_keyprefix"):
        raise ConfigurationError(
            "global_keyprefix is not supported; give this service a Redis database of its own."
        )
    if get("worker_pool_start_method") == "spawn":
        raise ConfigurationError("worker_pool_start_method must be 'fork', not 'spawn'.")


def is_json(serializer: object) -> bool:
    """Whether `serializer`, a name or a content type, is JSON; an unknown one is not."""
    return serializer == JSON or registry.name_to_type.get(serializer) == JSON


def settings_of(app: Celery, known: Settings) -> Settings:
    """`known` with the Redis that the app itself names, read now.

    Raises:
        ConfigurationError: it names none, or one that cannot be.
    """
    url = own_broker(app)
    if not url:
        raise ConfigurationError(
            "REDIS_URL is not set, and the app has no broker_url; set one of them to"
            " redis://:password@host:port/0, rediss://… or sentinel://…."
        )
    if (scheme := scheme_of(url)) not in _REDIS:
        raise ConfigurationError(
            f"broker_url begins with {scheme}://, but a durable app's broker is Redis; set it, or"
            " REDIS_URL, to redis://:password@host:port/0, rediss://… or sentinel://…."
        )
    if re.search(";rediss?://", url):
        raise ConfigurationError(
            "broker_url names several servers, but a durable app's Redis is one; name one, or the"
            " Sentinels that know which it is, as sentinel://…;sentinel://…."
        )
    conf = app.conf
    address = with_options(url, conf.broker_transport_options or {}, conf.broker_use_ssl)
    try:
        return Settings.load(**{**known.model_dump(), "redis_url": address})
    except InvalidSettings as exc:  # which names the variable that is not set
        raise ConfigurationError(str(exc).replace("REDIS_URL", "broker_url")) from None


def own_broker(app: Celery) -> str | None:
    """The address of the app's own broker, as Celery would read it, if there is one."""
    own = app.conf.broker_write_url  # it looks into the environment too
    if not own:
        return None
    return own if isinstance(own, str) else ";".join(own)


def own_backend(app: Celery) -> str | None:
    """The name or address of the app's own result backend, if there is one."""
    own = app.backend_cls or app.conf.result_backend
    if own is None or own == "disabled":
        return None
    return own if isinstance(own, str) else f"{own.__module__}:{own.__qualname__}"


def overridden(app: Celery, redis_url: str, *, is_worker: bool) -> Iterator[str]:
    """Each setting of the app that durability overrides, with the scheme of an address.

    Args:
        redis_url: the address that is used.
        is_worker: whether what only workers read counts.
    """
    conf = app.conf
    broker = own_broker(app)
    if broker and broker != redis_url and scheme_of(broker) not in _REDIS:
        yield f"broker_url ({scheme_of(broker)})"
    transport = conf.broker_transport
    if transport and str(transport) not in _REDIS:
        yield f"broker_transport ({transport})"
    if backend := own_backend(app):
        also = ", which is written too" if backend in MIRRORED else ""
        yield f"result_backend ({scheme_of(backend)}{also})"
    for name in WORKER if is_worker else ():
        if conf.value_set_for(name) and conf.get(name) != WORKER[name]:
            yield name


def scheme_of(address: str) -> str:
    """What an address begins with; a name whole. Nothing in it is secret."""
    return urlsplit(address).scheme if "://" in address else address.partition("?")[0]
