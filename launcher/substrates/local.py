"""This machine, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time

from launcher.cluster_file import LocalCluster
from launcher.home import ClusterState, NodeState, OpenCluster, home
from launcher.node_calls import Answer, Call, node_command, run_all, spec_to_find
from launcher.node_spec import NodeReady, NodeReport, NodeSpec
from launcher.substrate import NodeStatus, Say
from w2sr.errors import UserError

HOST = "this machine"
ASK_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 120.0


def up(cluster: OpenCluster, say: Say) -> ClusterState:
    """Start Ray here, unless it runs. After an interrupt or a failure nothing runs that this call started."""
    file = _file(cluster)
    began = time.monotonic()
    cluster.token()
    spec = NodeSpec(
        cluster=file.name,
        folder=_folder(file),
        port_key=f"{file.name}\0{home()}",
        token_path=str(cluster.token_path),
        address="127.0.0.1",
        num_cpus=file.num_cpus,
        num_gpus=file.num_gpus,
        env=file.environment(),
        env_file=file.env_file,
        ready_timeout_s=file.ready_timeout_s,
    )
    with contextlib.ExitStack() as undo:
        if cluster.state is None or not _is_kept(file):
            undo.callback(_ask, file, "stop", STOP_TIMEOUT_S)
        call = _call(file, "start", spec)
        waiting = lambda _, seconds: say(f"waiting for Ray for {seconds:.0f} s")  # noqa: E731
        (answer,) = run_all([call], file.ready_timeout_s + ASK_TIMEOUT_S, waiting)
        if answer.code != 0:
            raise UserError(f"Ray did not start on this machine: {answer.why}")
        undo.pop_all()
    ready = NodeReady.parse(answer.out)
    node = NodeState(ready.host, ready.address, ready.pid, ready.folder)
    started_at = cluster.state.started_at if cluster.state and cluster.state.nodes == (node,) else time.time()
    return ClusterState(ready.gcs, ready.dashboard, (node,), started_at, seconds={"head": round(time.monotonic() - began, 2)})


def status(cluster: OpenCluster) -> list[NodeStatus]:
    """Ask the keeper of Ray on this machine."""
    answer = _ask(_file(cluster), "status", ASK_TIMEOUT_S)
    if answer.code != 0:
        return [NodeStatus(HOST, False, answer.why)]
    report = NodeReport.parse(answer.out)
    return [NodeStatus(HOST, report.alive, report.detail)]


def down(cluster: OpenCluster, say: Say) -> None:
    """End Ray on this machine. Raises UserError when it does not end."""
    say("ending Ray on this machine")
    answer = _ask(_file(cluster), "stop", STOP_TIMEOUT_S)
    if answer.code != 0:
        raise UserError(f"Ray on this machine did not end: {answer.why}")


def _file(cluster: OpenCluster) -> LocalCluster:
    assert isinstance(cluster.file, LocalCluster)
    return cluster.file


def _folder(file: LocalCluster) -> str:
    key = "\0".join((str(os.getuid()), str(home()), file.name))
    return f"{file.temp_dir.rstrip('/')}/w2sr-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _is_kept(file: LocalCluster) -> bool:
    """Tell whether a keeper lives, also one whose Ray is only too busy to answer."""
    answer = _ask(file, "status", ASK_TIMEOUT_S)
    return answer.code == 0 and NodeReport.parse(answer.out).kept


def _ask(file: LocalCluster, action: str, timeout_s: float) -> Answer:
    (answer,) = run_all([_call(file, action, spec_to_find(file.name, _folder(file)))], timeout_s)
    return answer


def _call(file: LocalCluster, action: str, spec: NodeSpec) -> Call:
    try:
        return Call(HOST, node_command(file.python, action), spec.json())
    except OSError as error:
        raise UserError(
            f"cluster {file.name!r}: cannot run python: {file.python} ({error.strerror}); give the Python of w2sr's environment, or leave "
            "it out"
        ) from error
