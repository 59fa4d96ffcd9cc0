"""One Ray session for all tests here: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.config import ClusterSpec
from cluster.session import ray_session


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[ClusterSpec]:
    spec = ClusterSpec(num_cpus=2, num_gpus=0)
    with ray_session(spec):
        yield spec
