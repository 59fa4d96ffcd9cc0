"""`w2sr cluster up|status|down CLUSTER` and `w2sr cluster list`: the same on every kind of cluster."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from launcher.jobs import say

if TYPE_CHECKING:
    from launcher.home import ClusterState, OpenCluster

_CLUSTER = "CLUSTER.yaml, or the name of one that was used before"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = commands.add_parser("cluster", help="bring machines up and down: this one, hosts over ssh, a Ray cluster, Slurm")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("up", _up, "bring a cluster up, or bring back its lost nodes"),
        ("status", _status, "show which nodes are up"),
        ("down", _down, "end everything that `up` started"),
    ):
        action = actions.add_parser(name, parents=[debug], help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("cluster", metavar="CLUSTER", help=_CLUSTER)
        action.set_defaults(command=run)
        if name == "down":
            action.add_argument("--forget", action="store_true", help="count it as down even when a node cannot be reached")
    listed = actions.add_parser("list", parents=[debug], help="show the clusters that were used before, and which are up")
    listed.set_defaults(command=_list)


def _up(arguments: argparse.Namespace) -> int:
    from launcher.substrate import substrate

    with _alone(arguments.cluster) as cluster:
        kind = substrate(cluster)
        if cluster.state is not None and cluster.state.nodes and all(node.alive for node in kind.status(cluster)):
            print(f"{cluster.name} is up already: {_describe(cluster.state)}")
            return 0
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(_abandon, cluster))
            state = kind.up(cluster, say)
        cluster = cluster.save(state)
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in state.seconds.items())
    print(f"{cluster.name} is up after {time.monotonic() - began:.1f} s ({parts}): {_describe(state)}")
    print(f"next: w2sr doctor --cluster {cluster.name}, w2sr submit CONFIG --cluster {cluster.name}")
    return 0


def _abandon(cluster: OpenCluster, kind: type[BaseException] | None, _: BaseException | None, _trace: TracebackType | None) -> None:
    """After a failed or interrupted `up`: the substrate has ended what it started, the token goes too."""
    from w2sr.errors import UserError

    if kind is None:
        return
    if cluster.state is None:
        cluster.save(None)
    if not issubclass(kind, UserError):
        say(f"cluster {cluster.name!r}: what this command started has been ended")


def _describe(state: ClusterState) -> str:
    nodes = ", ".join(f"{node.host} ({node.address})" for node in state.nodes[:8])
    more = f" and {len(state.nodes) - 8} more" if len(state.nodes) > 8 else ""
    held = f"{len(state.nodes)} node{'' if len(state.nodes) == 1 else 's'}: {nodes}{more}; " if state.nodes else ""
    job = f"Slurm job {state.slurm_job}; " if state.slurm_job else ""
    return f"{job}{held}Ray at {state.address}, dashboard at {state.dashboard}"


def _status(arguments: argparse.Namespace) -> int:
    from launcher.home import open_cluster
    from launcher.substrate import substrate

    cluster = open_cluster(arguments.cluster)
    if cluster.state is None:
        print(f"{cluster.name} ({cluster.file.kind}) is down")
        return 1
    nodes = substrate(cluster).status(cluster)
    up = sum(node.alive for node in nodes)
    lasts = (time.time() - cluster.state.started_at) / 3600
    print(f"{cluster.name} ({cluster.file.kind}): {up} of {len(nodes)} nodes up, for {lasts:.1f} h; Ray at {cluster.state.address}")
    width = max(len(node.host) for node in nodes) if nodes else 0
    for node in nodes:
        print(f"  {node.host:<{width}}  {'up  ' if node.alive else 'LOST'}  {node.detail}")
    if up < len(nodes) and cluster.file.kind != "ray":
        print(f"`w2sr cluster up {cluster.name}` brings lost nodes back")
    return 0 if up == len(nodes) else 1


def _down(arguments: argparse.Namespace) -> int:
    from launcher.substrate import substrate
    from w2sr.errors import UserError

    with _alone(arguments.cluster) as cluster:
        _warn_of_jobs(cluster)
        try:
            substrate(cluster).down(cluster, say)
        except UserError as error:
            if not arguments.forget:
                raise
            say(str(error))
        was_up = cluster.state is not None
        cluster.save(None)
    print(f"{cluster.name} is down" if was_up else f"{cluster.name} was not up; nothing of it runs")
    return 0


def _warn_of_jobs(cluster: OpenCluster) -> None:
    """Name the jobs that end with the cluster's Ray; a job of Slurm has one of its own, and a foreign cluster goes on."""
    from launcher.home import known_jobs
    from launcher.jobs import standing

    if cluster.state is None or cluster.file.kind == "ray":
        return
    for job in known_jobs():
        if job.cluster == cluster.name and job.backend != "slurm" and not standing(job).over:
            say(f"job {job.id} ends with it; what it committed is kept, `w2sr resume {job.id}` goes on when {cluster.name} is up again")


def _list(_: argparse.Namespace) -> int:
    from launcher.home import known_clusters, open_cluster

    for name in known_clusters():
        cluster = open_cluster(name)
        print(f"{name} ({cluster.file.kind}): {'up: ' + _describe(cluster.state) if cluster.state else 'down'}")
    return 0


@contextlib.contextmanager
def _alone(name_or_file: str) -> Iterator[OpenCluster]:
    """Yield a cluster that one command at a time brings up or down, as it is once no other one does."""
    from cluster.file_locks import take_lock
    from launcher.home import open_cluster
    from w2sr.errors import UserError

    found = open_cluster(name_or_file)
    with open(found.folder / "lock", "a", encoding="utf-8") as file:
        if not take_lock(file, fcntl.LOCK_EX, found.folder):
            raise UserError(f"another command brings {found.name!r} up or down at the moment; wait for it, or end it")
        yield open_cluster(name_or_file)
