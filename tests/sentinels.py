"""A Redis with a replica, and a Sentinel that promotes it: real processes on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.servers import folder
from worker.stack.process import Process
from worker.stack.redis import RedisServer
from worker.stack.server import prepare_folder, write_private

#: What the Sentinel calls its master.
NAME = "ledger-master"


class SentinelServer(RedisServer):
    """A Sentinel, with a password of its own, that watches one master alone: a quorum of one."""

    name = "Sentinel"

    def __init__(self, data: Path, master: RedisServer) -> None:
        super().__init__(data)
        self._master = master

    def _build(self, port: int) -> Process:
        lines = [
            "bind 127.0.0.1",
            f"port {port}",
            f'dir "{self.data / "store"}"',
            f"requirepass {self.password}",
            f"sentinel monitor {NAME} 127.0.0.1 {self._master.port} 1",
            f"sentinel auth-pass {NAME} {self._master.password}",
            f"sentinel down-after-milliseconds {NAME} 300",
            f"sentinel failover-timeout {NAME} 3000",
        ]
        configuration = self.data / "sentinel.conf"
        write_private(configuration, "\n".join(lines) + "\n")
        return Process(
            [str(self._program), str(configuration), "--sentinel"],
            log=self.data / "redis.log",
            cwd="/",
            death_signal=self.stop_signal,
        )


class Group:
    """Two servers with one password, and their Sentinel.

    Attributes:
        servers: the first master, and its replica.
        sentinel: who watches them.
    """

    def __init__(self, data: Path, stack: ExitStack) -> None:
        first = RedisServer(data / "first")
        second = RedisServer(data / "second")
        prepare_folder(second.data)
        write_private(second.data / "password", first.password)
        self.servers = (first, second)
        for server in self.servers:
            server.options |= {"masterauth": first.password, "repl-diskless-sync-delay": "0"}
        self._start(first, stack)
        second.options["replicaof"] = f"127.0.0.1 {first.port}"
        self._start(second, stack)
        del second.options["replicaof"]
        self._until(lambda: self._role(second).get("master_link_status") == "up")
        self.sentinel = SentinelServer(data / "sentinel", first)
        self._start(self.sentinel, stack)
        self._sentinel = stack.enter_context(
            redis.Redis("127.0.0.1", self.sentinel.port, password=self.sentinel.password)
        )
        self._until(self._has_replica)

    @property
    def url(self) -> str:
        """As `REDIS_URL` has it. The first Sentinel named is none: they go away too."""
        password = self.servers[0].password
        return (
            f"sentinel://:{password}@127.0.0.1:1;sentinel://127.0.0.1:{self.sentinel.port}"
            f"/?master_name={NAME}&sentinel_password={self.sentinel.password}"
        )

    @property
    def transport_options(self) -> dict[str, Any]:
        """As Celery has it, beside a `broker_url`."""
        return {"master_name": NAME, "sentinel_kwargs": {"password": self.sentinel.password}}

    @property
    def broker_url(self) -> str:
        """As Celery has it, beside `transport_options`."""
        return f"sentinel://:{self.servers[0].password}@127.0.0.1:{self.sentinel.port}/0"

    @property
    def master(self) -> RedisServer:
        """Whom the Sentinel names, which says so itself."""
        port = self._named()
        return next(server for server in self.servers if server.port == port)

    def fail_over(self) -> None:
        """Make the replica the master by command; the old master lives on as its replica."""
        old = self.master
        self._until(self._takes_the_command)
        self.await_other(old)
        self._until(lambda: self._role(old)["role"] == "slave")

    def await_other(self, old: RedisServer) -> None:
        """Wait until another server than `old` is the master."""
        self._until(lambda: self._named() != old.port)
        self._until(lambda: self._role(self.master)["role"] == "master")

    def _takes_the_command(self) -> bool:
        try:
            self._sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
        except redis.exceptions.ResponseError:  # the last one is not quite over
            return False
        return True

    def _named(self) -> int:
        address: Any = self._sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return int(address[1])

    def _has_replica(self) -> bool:
        replicas: Any = self._sentinel.sentinel_slaves(NAME)
        return any(replica["flags"] == "slave" for replica in replicas)

    def _role(self, server: RedisServer) -> dict[str, Any]:
        try:
            with redis.Redis.from_url(server.url) as client:
                role: Any = client.info("replication")
        except redis.exceptions.ConnectionError:
            # A Sentinel that gives a server another role drops all its clients with that.
            return {"role": "changing"}
        return dict(role)

    def _start(self, server: RedisServer, stack: ExitStack) -> None:
        stack.callback(server.stop)
        server.start()

    def _until(self, true: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "the Sentinel or its servers are not ready"
            time.sleep(0.05)  # they tell nobody


@contextmanager
def group() -> Iterator[Group]:
    """A running group of its own, ready to fail over."""
    with folder() as data, ExitStack() as stack:
        yield Group(data, stack)
