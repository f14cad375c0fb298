"""`worker flower`: Flower, Celery's monitor, on this service's app."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from worker.errors import ConfigurationError
from worker.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

_LOOPBACK: Final = "127.0.0.1"


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--port", type=click.IntRange(0, 65535), help="Default FLOWER_PORT, or 5555.")
@click.option("--address", help=f"Default FLOWER_ADDRESS, or {_LOOPBACK}.")
@click.option(
    "--basic-auth",
    multiple=True,
    metavar="USER:PASSWORD",
    help="Who may look. Others can read a command line: better set FLOWER_BASIC_AUTH.",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def flower(
    port: int | None,
    address: str | None,
    basic_auth: tuple[str, ...],
    flower_options: Sequence[str],
) -> None:
    """Run Flower until SIGTERM or Ctrl-C; every other option is Flower's own, as --name=value.

    It can cancel jobs and stop workers: beyond this machine it must ask for a password.

    Exit codes: 0 stopped, 2 a setting is wrong, a password is missing, Flower is not installed.
    """
    settings = Settings.load()
    argv = [*flower_options]
    argv += [] if port is None else [f"--port={port}"]
    argv += [] if address is None else [f"--address={address}"]
    argv += [f"--basic_auth={','.join(basic_auth)}"] if basic_auth else []
    chosen = _options(argv)
    address = chosen.address or _LOOPBACK  # Flower's own default is every interface
    if not (_is_loopback(address) or chosen.unix_socket or _has_password(chosen)):
        raise ConfigurationError(
            f"Flower would listen on {address} without a password; set FLOWER_BASIC_AUTH to"
            f" user:password, or --address {_LOOPBACK}."
        )
    _refuse_a_taken_port(chosen, address)
    _app(settings).start(["flower", *argv, f"--address={address}"])


def _app(settings: Settings) -> Celery:
    """Our app, as Flower takes it."""
    from worker.broker.transport import ADDRESS  # Celery takes half a second to import
    from worker.runtime.app import create_app
    from worker.runtime.install import durability_of

    app = create_app(settings)
    address = durability_of(app).broker.options.get(ADDRESS)
    if address is not None:  # Flower asks the first Sentinel itself
        app.conf.broker_transport_options["sentinel_kwargs"] = dict(address.sentinel_options)
    return app


def _refuse_a_taken_port(options: Any, address: str) -> None:
    """Say in one sentence what Flower would say in a traceback.

    Raises:
        ConfigurationError: nothing can listen there.
    """
    if options.unix_socket or not options.port:
        return
    from tornado.netutil import bind_sockets

    try:
        sockets = bind_sockets(options.port, address=address)
    except (OSError, OverflowError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise ConfigurationError(
            f"Flower cannot listen on {address} port {options.port}: {why}; stop what has the"
            " port, or choose another --port."
        ) from None
    for each in sockets:
        each.close()


def _options(argv: Sequence[str]) -> Any:
    """Flower's own view of its environment, its configuration file and `argv`, in that order.

    Raises:
        ConfigurationError: Flower is not installed, or an option is wrong.
    """
    try:
        from flower.command import apply_env_options, apply_options, is_flower_option
        from tornado.options import Error, options
    except ImportError:
        raise ConfigurationError(
            'Flower is not installed; run `pip install "path/to/celery-ledger[flower]"`.'
        ) from None
    for option in argv:
        if not is_flower_option(option):  # Flower drops it without a word
            raise click.NoSuchOption(option.partition("=")[0])
    try:
        apply_env_options()
        apply_options("worker flower", list(argv))
    except (Error, ValueError, OSError) as exc:
        raise ConfigurationError(
            f"Flower refuses an option or a FLOWER_… variable: {exc}. (Kubernetes sets FLOWER_PORT"
            " for a Service of this name; enableServiceLinks: false prevents it.)"
        ) from None
    return options


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _has_password(options: Any) -> bool:
    """Whether Flower asks for a login; an empty variable makes an empty password, which is none."""
    pairs = [str(pair).partition(":") for pair in options.basic_auth or ()]
    return bool(options.auth) or (bool(pairs) and all(user and word for user, _, word in pairs))
