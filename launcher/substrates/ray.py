"""A Ray cluster that somebody else keeps: looked at and remembered, never stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from typing import Any

from launcher.cluster_file import RayCluster
from launcher.home import ClusterState, OpenCluster
from launcher.substrate import NodeStatus, Say
from w2sr.errors import UserError

TIMEOUT_S = 10.0


def up(cluster: OpenCluster, say: Say) -> ClusterState:
    """Check that its dashboard answers and lets us in, and remember it. Raises UserError otherwise."""
    file = _file(cluster)
    began = time.monotonic()
    say(f"asking the dashboard at {file.dashboard}")
    _check(cluster, file)
    return ClusterState(file.address, file.dashboard, (), time.time(), seconds={"connect and check": round(time.monotonic() - began, 2)})


def status(cluster: OpenCluster) -> list[NodeStatus]:
    """Return the nodes that its dashboard lists; one line about the cluster when it does not answer."""
    file = _file(cluster)
    try:
        values = _check(cluster, file)
    except UserError as error:
        return [NodeStatus(file.dashboard, False, str(error))]
    nodes = values["data"].get("summary", [])
    return [
        NodeStatus(node.get("hostname", "?"), node.get("raylet", {}).get("state") == "ALIVE", f"address {node.get('ip', '?')}")
        for node in nodes
    ] or [NodeStatus(file.dashboard, True, "answers")]


def down(cluster: OpenCluster, say: Say) -> None:
    """Nothing: the cluster is not ours to end."""
    say(f"{_file(cluster).address} goes on: w2sr did not start it")


def _file(cluster: OpenCluster) -> RayCluster:
    assert isinstance(cluster.file, RayCluster)
    return cluster.file


def _check(cluster: OpenCluster, file: RayCluster) -> dict[str, Any]:
    """Return what the dashboard says of its nodes."""
    path = cluster.token_path
    if path is not None and not path.exists():
        raise UserError(f"cluster {cluster.name!r}: token_file {path} does not exist; ask the cluster's owner for its token")
    headers = {"Authorization": f"Bearer {cluster.token()}"} if path is not None else {}
    try:
        with contextlib.closing(http.client.HTTPConnection(file.dashboard, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/nodes?view=summary", headers=headers)
            response = connection.getresponse()
            body = response.read()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a name that no host can have
        raise UserError(
            f"no Ray dashboard answers at {file.dashboard} ({error}); check `dashboard`, which is host:port, and whether a port-forward is "
            "needed"
        ) from error
    if response.status in (401, 403):
        raise UserError(f"the Ray cluster at {file.dashboard} refused this client (HTTP {response.status}); set token_file to its token")
    if response.status != 200:
        raise UserError(f"{file.dashboard} answered HTTP {response.status} to a question for its nodes; is it a Ray dashboard?")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("data"), dict):
        raise UserError(f"{file.dashboard} answers, but not as a Ray dashboard does; check `dashboard`, which is host:port")
    return found
