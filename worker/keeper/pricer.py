"""Tell Kubernetes what each worker's pod is worth, so that a scale-down takes idle ones first."""

from __future__ import annotations

import logging

from worker.keeper.cluster import Cluster, ClusterRefused, ClusterUnavailable
from worker.keeper.keeper import Post
from worker.ledger.lease import running_by_lease

logger = logging.getLogger(__name__)


class Pricer:
    """Sets each worker's pod's deletion cost by the number of jobs that run there.

    A pod is known by its host's name, which a worker's name ends with. What Kubernetes has is read
    in each round: another keeper may have led meanwhile.
    """

    every = 10.0

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._is_told = False  # that it cannot be done

    def run(self, post: Post) -> bool:
        """See `Duty`. That Kubernetes is away is no trouble of the keeper's: it is logged once."""
        wanted = {pod: cost_of(jobs) for pod, jobs in _jobs_by_pod(post).items()}
        try:
            if wanted:
                self._tell(wanted)
        except ClusterUnavailable as exc:
            if not self._is_told:
                logger.warning("Kubernetes is not told which pods are idle: %s", exc)
            self._is_told = True
            return False
        if self._is_told:
            logger.info("Kubernetes is told again which pods are idle.")
        self._is_told = False
        return False

    def _tell(self, wanted: dict[str, str]) -> None:
        refused: ClusterRefused | None = None
        with self._cluster.session() as session:
            for pod, cost in session.costs().items():
                if wanted.get(pod, cost) == cost:
                    continue
                try:
                    session.set_cost(pod, wanted[pod])
                except ClusterRefused as exc:  # of this pod: the others' costs are to be right
                    refused = exc
        if refused is not None:
            raise refused


def cost_of(jobs: int) -> str:
    """The deletion cost of a pod that runs so many jobs: the largest power of two in them, so that
    a busy service does not change it in each round. Kubernetes asks for few changes."""
    return str(1 << (jobs.bit_length() - 1) if jobs else 0)


def _jobs_by_pod(post: Post) -> dict[str, int]:
    """How many jobs run in each pod; a worker and its isolated process are in one."""
    jobs: dict[str, int] = {}
    for name, running in running_by_lease(post.ledger):
        pod = name.rpartition("@")[2]
        jobs[pod] = jobs.get(pod, 0) + running
    return jobs
