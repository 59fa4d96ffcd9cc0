"""The Ray session of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.config import ClusterSpec


@contextmanager
def ray_session(spec: ClusterSpec) -> Iterator[None]:
    """Start a private Ray on this machine, or connect to `spec.address`; always shut down at the end.

    Raises ClusterError when the machine has fewer processors than `spec` asks for, or the address does not answer.
    """
    raise NotImplementedError
    yield


def require(what: str, cpus: float, gpus: float, spec: ClusterSpec) -> None:
    """Raise ClusterError unless the session's cluster has `cpus` CPUs and `gpus` GPUs in all.

    `what` names the setting that asks for them, for example "train.num_ranks=4 with 1 CPU each". Without this check Ray waits for ever.
    """
    raise NotImplementedError
