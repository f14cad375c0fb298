"""The Kubernetes cluster that a keeper runs in, as far as its service account may see and tell."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from worker.errors import Unavailable
from worker.settings import api_server

#: Where Kubernetes puts a service account's token, CA and namespace; all three may change.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Seconds that each step of a call may take, and all calls of one session.
STEP_SECONDS = 5.0
SESSION_SECONDS = 30.0
#: Pods in one answer, and its bytes: a few kilobytes of metadata for each are usual.
PAGE = 200
ANSWER_BYTES = 16 << 20
#: What scale-downs go by: the pods with the lowest go first; without it a pod has 0.
COST = "controller.kubernetes.io/pod-deletion-cost"

# Names and annotations are all that is wanted of a pod.
_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_ONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ClusterUnavailable(Unavailable):
    """The API server is away, or refuses."""


class ClusterRefused(ClusterUnavailable):
    """The API server answers, and does not do it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster, by the address of its API server and the files of a service account.

    Attributes:
        host: the API server's.
        port: ditto.
        account: the folder with the files `token`, `ca.crt` and `namespace`.
    """

    host: str
    port: int
    account: Path = ACCOUNT

    @classmethod
    def found(cls) -> Cluster | None:
        """That of this process; `None` where it runs in none, or was given no token for it."""
        address = api_server()
        return cls(*address) if address and (ACCOUNT / "token").exists() else None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Calls over one connection, with the token and the CA of this moment.

        Raises:
            ClusterUnavailable: also within the block.
        """
        try:
            context = ssl.create_default_context(cafile=self.account / "ca.crt")
            token = (self.account / "token").read_text().strip()
            namespace = (self.account / "namespace").read_text().strip()
            connection = HTTPSConnection(
                self.host, self.port, timeout=STEP_SECONDS, context=context
            )
            try:
                yield Session(connection, token, namespace)
            finally:
                connection.close()
        except (OSError, HTTPException) as exc:
            said = str(exc) or type(exc).__name__
            raise ClusterUnavailable(f"the API server is not available: {said}") from None
        except ValueError:  # which may quote the token, where that can be no header
            raise ClusterUnavailable("the API server's answer or the token is malformed") from None


class Session:
    """Calls to an API server, for one namespace."""

    def __init__(self, connection: HTTPSConnection, token: str, namespace: str) -> None:
        self._connection, self._token = connection, token
        self._until = time.monotonic() + SESSION_SECONDS
        self._pods = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"

    def costs(self) -> dict[str, str]:
        """Each pod of the namespace and its deletion cost; those that end already are left out."""
        found: dict[str, str] = {}
        query = {"limit": str(PAGE)}
        while True:
            page = self._call("GET", f"{self._pods}?{urlencode(query)}", _LIST)
            for pod in page.get("items") or ():
                metadata = pod["metadata"]
                if "deletionTimestamp" not in metadata:
                    found[metadata["name"]] = (metadata.get("annotations") or {}).get(COST, "0")
            query["continue"] = (page.get("metadata") or {}).get("continue") or ""
            if not query["continue"]:
                return found

    def set_cost(self, pod: str, cost: str) -> None:
        """Let a pod's deletion cost be `cost`, an integer; a pod that is gone needs none."""
        path = f"{self._pods}/{quote(pod, safe='')}?fieldManager=celery-ledger"
        self._call("PATCH", path, _ONE, {"metadata": {"annotations": {COST: cost}}})

    def _call(
        self, method: str, path: str, accept: str, patch: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {"Accept": accept, "Authorization": f"Bearer {self._token}"}
        if patch is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        body = None if patch is None else json.dumps(patch)
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = self._read(answer)
        if answer.status == 404 and patch is not None:
            return {}
        if answer.status != 200:
            raise ClusterRefused(f"the API server answers {answer.status} to {method} of pods")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ClusterUnavailable("the API server's answer is no object")
        return found

    def _read(self, answer: HTTPResponse) -> bytes:
        text = b""
        while part := answer.read1(1 << 16):
            text += part
            if len(text) > ANSWER_BYTES or time.monotonic() > self._until:
                raise ClusterUnavailable("the API server's answers are too long, or too slow")
        answer.close()  # which `read1` leaves to us; the connection is free again
        return text
