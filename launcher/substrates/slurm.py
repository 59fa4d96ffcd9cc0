"""Nodes of Slurm that are held, with Ray on them, until they are given back or their time ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

from launcher import slurm
from launcher.cluster_file import SlurmCluster
from launcher.home import ClusterState, OpenCluster, home, open_cluster
from launcher.slurm_nodes import NODES
from launcher.slurm_script import LOG, Places, hold_script
from launcher.substrate import NodeStatus, Say
from w2sr.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 1.0
SAY_EVERY_S = 5.0
DOWN_WAIT_S = 120.0
# After how many seconds a Slurm that did not answer is asked again while a job waits in its queue.
SILENT_S = (5.0, 15.0, 45.0, 120.0)
# The number of the job that holds the nodes, or is queued to.
NUMBER = "slurm_job"


def up(cluster: OpenCluster, say: Say) -> ClusterState:
    """Submit a job that holds the nodes, unless there is one, and wait until Ray is up. Raises UserError when Slurm or a node refuses.

    After an interrupt or a failure nothing is left that this call submitted or, as the cluster was down, waited for.
    """
    number = _number(cluster)
    with contextlib.ExitStack() as undo:
        if number is not None and slurm.queue_state(number)[0] != "ended":
            say(f"Slurm job {number} is there")
            if cluster.state is None:
                undo.callback(down, cluster, say)
        else:
            cluster.token()
            (cluster.folder / LOG).unlink(missing_ok=True)
            number = slurm.submit(hold_script(_file(cluster), cluster.folder, Places(home(), ROOT)))
            (cluster.folder / NUMBER).write_text(number)
            undo.callback(down, cluster, say)
            say(slurm.warning(number) or f"Slurm job {number} is submitted")
        state = _wait(cluster, number, say)
        undo.pop_all()
    return state


def status(cluster: OpenCluster) -> list[NodeStatus]:
    """Ask Slurm for the job, and read what the process that keeps its nodes last wrote about them."""
    state = cluster.up()
    assert state.slurm_job is not None
    try:
        kind, reason = slurm.queue_state(state.slurm_job)
    except UserError as error:
        kind, reason = "unknown", str(error)
    attempts = sorted((cluster.folder / "slurm").glob(f"{state.slurm_job}-*/{NODES}"), key=lambda path: path.stat().st_mtime)
    if kind != "running" or not attempts:
        return [NodeStatus(node.host, False, f"Slurm job {state.slurm_job}: {reason.lower()}") for node in state.nodes]
    return [NodeStatus(**row) for row in json.loads(attempts[-1].read_text(encoding="utf-8"))]


def down(cluster: OpenCluster, say: Say) -> None:
    """Cancel the job, and wait until Slurm has taken its nodes back. Raises UserError when it does not."""
    number = _number(cluster)
    if number is None:
        return
    say(f"cancelling Slurm job {number}")
    slurm.cancel(number)
    began = time.monotonic()
    while slurm.queue_state(number)[0] != "ended":
        if time.monotonic() - began > DOWN_WAIT_S:
            raise UserError(f"Slurm job {number} does not end in {DOWN_WAIT_S:g} s after scancel; see `scontrol show job {number}`")
        time.sleep(POLL_S)
    (cluster.folder / NUMBER).unlink(missing_ok=True)


def _wait(cluster: OpenCluster, number: str, say: Say) -> ClusterState:
    """Return what is up when all nodes are. Waits in the queue as long as that takes, for nodes `ready_timeout_s`."""
    began = said = time.monotonic()
    running_since: float | None = None
    while True:
        kind, reason = _asked(number, say)
        now = time.monotonic()
        if kind == "ended":
            raise UserError(f"Slurm job {number} has ended ({reason.lower()}) before Ray was up: {_last_words(cluster)}")
        running_since = None if kind == "pending" else running_since or now
        found = open_cluster(cluster.name)
        if kind == "running" and found.state is not None and found.state.slurm_job == number:
            lost = [node for node in status(found) if not node.alive]
            if not lost:
                queued = {"queue": round((running_since or now) - began, 2)}
                return dataclasses.replace(found.state, seconds=queued | found.state.seconds)
            reason = ", ".join(f"{node.host}: {node.detail}" for node in lost)
        # Twice: the head has this time, then the others.
        if running_since is not None and now - running_since > 2 * _file(cluster).ready_timeout_s:
            raise UserError(f"nodes of Slurm job {number} are not up after 2 x ready_timeout_s ({reason}): {_last_words(cluster)}")
        if now - said > SAY_EVERY_S:
            said = now
            say(f"{now - began:.0f} s: Slurm job {number} is {reason.lower()}; {_last_words(cluster)}")
        time.sleep(POLL_S)


def _asked(number: str, say: Say) -> tuple[str, str]:
    """Return slurm.queue_state. A Slurm that is silent for a while must not cost the place in its queue; UserError when it stays so."""
    for pause_s in SILENT_S:
        try:
            return slurm.queue_state(number)
        except UserError as error:
            say(f"asking again in {pause_s:g} s: {error}")
            time.sleep(pause_s)
    return slurm.queue_state(number)


def _last_words(cluster: OpenCluster) -> str:
    path = cluster.folder / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "nothing said yet"


def _number(cluster: OpenCluster) -> str | None:
    path = cluster.folder / NUMBER
    return path.read_text().strip() if path.exists() else None


def _file(cluster: OpenCluster) -> SlurmCluster:
    assert isinstance(cluster.file, SlurmCluster)
    return cluster.file
