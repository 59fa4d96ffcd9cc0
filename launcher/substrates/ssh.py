"""Hosts reached by ssh, with the user's own configuration, keys and jump hosts. The first host is the head.

All hosts are asked at once. What a node needs travels over ssh's stdin, the token too; nothing secret is an argument.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.code_digest import PACKAGES, code_digest
from launcher.cluster_file import HostConfig, SshCluster
from launcher.home import ClusterState, NodeState, OpenCluster, home
from launcher.node import versions
from launcher.node_calls import ROOT, Answer, Call, check_same, node_command, run_all, spec_to_find
from launcher.node_spec import NodeReady, NodeReport, NodeSpec
from launcher.substrate import NodeStatus, Say
from w2sr.errors import UserError

CONNECT_TIMEOUT_S = 10
ASK_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 120.0
COPY_TIMEOUT_S = 3600.0


def up(cluster: OpenCluster, say: Say) -> ClusterState:
    """Bring up the nodes that are not up. After an interrupt or a failure nothing runs that this call started."""
    file = _file(cluster)
    seconds: dict[str, float] = {}
    if file.tree == "copy" or file.environment_copy:
        began = time.monotonic()
        _copy(file, say)
        seconds["copy"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    reports = _check(cluster, file)
    seconds["connect and check"] = round(time.monotonic() - began, 2)
    head = file.hosts[0].host
    lost = [host.host for host in file.hosts if not reports[host.host].alive]
    ours = [name for name in lost if not reports[name].kept]
    ready = {name: report.ready for name, report in reports.items() if report.ready is not None}
    if cluster.state is None or not reports[head].kept:
        # Nodes of a head that is gone serve nobody, and those of a cluster that was forgotten have a token that is lost. A head that is
        # only too busy to answer is waited for.
        lost = ours = [host.host for host in file.hosts]
        ready = {}
        _stop(cluster, file, lost)
    with contextlib.ExitStack() as undo:
        undo.callback(_stop, cluster, file, ours)
        for part, names in (("head", [name for name in lost if name == head]), ("workers", [name for name in lost if name != head])):
            began = time.monotonic()
            ready |= _start(cluster, file, names, ready[head].gcs if head in ready else None, len(ready), say)
            seconds |= {part: round(time.monotonic() - began, 2)} if names else {}
        undo.pop_all()
    nodes = tuple(NodeState(host.host, ready[host.host].address, ready[host.host].pid, ready[host.host].folder) for host in file.hosts)
    same_head = cluster.state is not None and cluster.state.nodes[0] == nodes[0]
    started_at = cluster.state.started_at if cluster.state is not None and same_head else time.time()
    return ClusterState(ready[head].gcs, ready[head].dashboard, nodes, started_at, seconds=seconds)


def status(cluster: OpenCluster) -> list[NodeStatus]:
    """Ask every host at once; one that does not answer is reported after half a minute at the latest."""
    file = _file(cluster)
    found = []
    for answer in _ask(cluster, file, [host.host for host in file.hosts], "status", ASK_TIMEOUT_S):
        if answer.code == 0:
            report = NodeReport.parse(answer.out)
            found.append(NodeStatus(answer.host, report.alive, report.detail))
        else:
            found.append(NodeStatus(answer.host, False, f"cannot be reached: {answer.why}"))
    return found


def down(cluster: OpenCluster, say: Say) -> None:
    """End every node that can be reached. Raises UserError that names the others."""
    file = _file(cluster)
    unreached = [answer for answer in _stop(cluster, file, [host.host for host in file.hosts], say) if answer.code != 0]
    if unreached:
        names = "; ".join(f"{answer.host} ({answer.why})" for answer in unreached)
        raise UserError(
            f"could not end the node on {names}; run `w2sr cluster down {cluster.name}` again when it is back, or `w2sr cluster down "
            f"{cluster.name} --forget` if it never will"
        )


def ssh_command(file: SshCluster, host: str, *arguments: str) -> list[str]:
    """Return the ssh command that reaches `host`; `ssh_options` come first, because ssh takes the first value of each option."""
    keep = [
        "-o",
        "BatchMode=yes",
        "-o",
        f"ConnectTimeout={CONNECT_TIMEOUT_S}",
        "-o",
        "ServerAliveInterval=5",
        "-o",
        "ServerAliveCountMax=3",
    ]
    return ["ssh", *file.ssh_options, *keep, *arguments, host]


def _file(cluster: OpenCluster) -> SshCluster:
    assert isinstance(cluster.file, SshCluster)
    if shutil.which("ssh") is None:
        raise UserError("this machine has no ssh; install OpenSSH's client, or use kind: local")
    return cluster.file


def node_folder(file: SshCluster, host: str) -> str:
    """Return the node's folder: another for each user, state folder, cluster and host, so that hosts may share their temp_dir."""
    key = "\0".join((str(os.getuid()), str(home()), file.name, host))
    return f"{file.temp_dir.rstrip('/')}/w2sr-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _spec(cluster: OpenCluster, file: SshCluster, host: HostConfig, head: str | None) -> NodeSpec:
    return NodeSpec(
        cluster=file.name,
        folder=node_folder(file, host.host),
        port_key=f"{file.name}\0{home()}",
        head=head,
        token=cluster.token(),
        interface=file.network.interface,
        address=host.address,
        num_cpus=host.cpus,
        num_gpus=host.gpus,
        labels=host.labels,
        env=file.environment(),
        env_file=file.env_file,
        ready_timeout_s=file.ready_timeout_s,
    )


def _call(file: SshCluster, host: str, action: str, spec: NodeSpec) -> Call:
    remote = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(node_command(file.python, action))}"
    return Call(host, [*ssh_command(file, host), remote], spec.json())


def _ask(
    cluster: OpenCluster, file: SshCluster, hosts: Sequence[str], action: str, timeout_s: float, say: Say | None = None
) -> list[Answer]:
    def waiting(running: list[Call], seconds: float) -> None:
        if say:
            say(f"{len(hosts) - len(running)} of {len(hosts)} hosts done after {seconds:.0f} s; waiting for {_names(running)}")

    calls = [_call(file, host, action, spec_to_find(cluster.name, node_folder(file, host))) for host in hosts]
    return run_all(calls, timeout_s, waiting)


def _stop(cluster: OpenCluster, file: SshCluster, hosts: Sequence[str], say: Say | None = None) -> list[Answer]:
    return _ask(cluster, file, hosts, "stop", STOP_TIMEOUT_S, say)


def _check(cluster: OpenCluster, file: SshCluster) -> dict[str, NodeReport]:
    """Return what every host says of itself. Raises UserError about those that cannot be reached or would run something else."""
    ours = NodeReport(False, False, "", versions(), code_digest(), None)
    answers = _ask(cluster, file, [host.host for host in file.hosts], "status", ASK_TIMEOUT_S)
    failed = [answer for answer in answers if answer.code != 0]
    if failed:
        raise UserError("\n".join(f"host {answer.host}: {_advice(file, answer)}" for answer in failed))
    reports = {answer.host: NodeReport.parse(answer.out) for answer in answers}
    for host, report in reports.items():
        check_same(host, report, ours)
    return reports


def _advice(file: SshCluster, answer: Answer) -> str:
    """Return what a host that could not be asked said, and what to do."""
    if answer.code in (255, None):
        return f"ssh failed: {answer.why}; `ssh {answer.host} true` must work without a question (keys, known_hosts, ssh_options)"
    if f"{file.python}: No module named" in answer.err or "cd:" in answer.err or "No such file or directory" in answer.err:
        hint = f"{ROOT} and {file.python} must be there too: put them on a shared file system, or set tree: copy and environment_copy: true"
        return f"{answer.why}; {hint}"
    return answer.why


def _start(cluster: OpenCluster, file: SshCluster, names: list[str], head: str | None, up_already: int, say: Say) -> dict[str, NodeReady]:
    """Start nodes at once and return what they say. Raises UserError with the words of the first that does not come up."""

    def waiting(running: list[Call], seconds: float) -> None:
        done = up_already + len(names) - len(running)
        say(f"{done} of {len(file.hosts)} nodes ready after {seconds:.0f} s; waiting for {_names(running)}")

    hosts = [host for host in file.hosts if host.host in names]
    calls = [_call(file, host.host, "start", _spec(cluster, file, host, head)) for host in hosts]
    answers = run_all(calls, file.ready_timeout_s + ASK_TIMEOUT_S, waiting)
    failed = [answer for answer in answers if answer.code != 0]
    if failed:
        raise UserError("\n".join(f"host {answer.host}: {answer.why}" for answer in failed))
    return {answer.host: NodeReady.parse(answer.out) for answer in answers}


def _names(running: list[Call]) -> str:
    shown = ", ".join(f"{call.host}: {call.phase}" for call in running[:3])
    return shown + (f" and {len(running) - 3} more" if len(running) > 3 else "")


def _copy(file: SshCluster, say: Say) -> None:
    """Bring our sources, and the environment when asked for, to the same place on every host. Raises UserError about those that fail."""
    if shutil.which("rsync") is None:
        raise UserError("tree: copy needs rsync on this machine and on the hosts; install it, or use a shared file system (tree: shared)")
    calls = []
    for host in file.hosts:
        shell = shlex.join(ssh_command(file, host.host)[:-1])
        if file.tree == "copy":
            sources = [str(ROOT / name) for name in (*PACKAGES, "configs", "pyproject.toml") if (ROOT / name).exists()]
            calls.append(_rsync(host.host, shell, sources, ROOT, "--delete", "--exclude=__pycache__"))
        if file.environment_copy:
            prefix = Path(file.python).parents[1]
            calls.append(_rsync(host.host, shell, [f"{prefix}/"], prefix))

    def waiting(running: list[Call], seconds: float) -> None:
        say(f"copying for {seconds:.0f} s; waiting for {', '.join(sorted({call.host for call in running}))}")

    failed = [answer for answer in run_all(calls, COPY_TIMEOUT_S, waiting) if answer.code != 0]
    if failed:
        raise UserError("\n".join(f"host {answer.host}: the copy failed: {answer.why}" for answer in failed))


def _rsync(host: str, shell: str, sources: list[str], target: Path, *options: str) -> Call:
    make = f"mkdir -p {shlex.quote(str(target))} && rsync"
    return Call(host, ["rsync", "-a", *options, "-e", shell, f"--rsync-path={make}", *sources, f"{host}:{target}/"])
