"""Jobs on a cluster that is up (local, ssh, ray): Ray's Jobs API starts the supervisor on the head."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError
from cluster.ray_jobs import RayJobs
from launcher import slurm
from launcher.cluster_file import SlurmCluster
from launcher.home import Job, OpenCluster
from launcher.job_state import LOG
from launcher.slurm_script import held_stop_s
from launcher.substrate import Say
from launcher.tunnel import dashboard_url


def submit(cluster: OpenCluster, job: Job, say: Say) -> str:
    """See Backend."""
    held = f", on the nodes of Slurm job {cluster.up().slurm_job}" if cluster.up().slurm_job else ""
    say(f"handing the job to cluster {cluster.name} at {cluster.up().dashboard}{held}")
    with _jobs(cluster) as jobs:
        return jobs.submit(job.id, command(cluster, job), environment(cluster))


def state(cluster: OpenCluster, job: Job) -> str:
    """See Backend. A cluster that is down has ended its jobs; one that somebody else keeps is only forgotten, and may go on with them."""
    if cluster.state is None:
        return "unknown" if cluster.file.kind == "ray" else "ended"
    try:
        with _jobs(cluster) as jobs:
            return jobs.state(job.backend_id)
    except ClusterError:
        return "unknown"


def stop(cluster: OpenCluster, job: Job) -> None:
    """See Backend."""
    if cluster.state is not None:
        with _jobs(cluster) as jobs:
            jobs.stop(job.backend_id)


def preview(cluster: OpenCluster, job: Job) -> str:
    """Return what `submit` would ask for."""
    return f"Ray job    {command(cluster, job)}"


def command(cluster: OpenCluster, job: Job) -> str:
    """Return the shell command that Ray runs on the head. What Python says before the supervisor has its log goes there too."""
    python, folder, log = (shlex.quote(str(part)) for part in (cluster.file.python, job.folder, job.folder / LOG))
    return f"exec {python} -m launcher.supervisor {folder} >> {log} 2>&1"


def environment(cluster: OpenCluster) -> dict[str, str]:
    """Return what the job's processes get beyond the nodes' own environment: the way to our sources, and the end of nodes that Slurm gave.

    Ray replaces ${…} on the node.
    """
    root = str(Path(__file__).resolve().parents[2])
    found = {"PYTHONPATH": f"{root}{os.pathsep}${{PYTHONPATH}}"}
    if isinstance(cluster.file, SlurmCluster):
        number = cluster.up().slurm_job
        assert number is not None
        stop_by = slurm.stop_by(number, held_stop_s(cluster.file))
        found |= {"W2SR_STOP_BY": stop_by} if stop_by else {}
    return found


@contextmanager
def _jobs(cluster: OpenCluster) -> Iterator[RayJobs]:
    with dashboard_url(cluster) as url:
        yield RayJobs(url, cluster.token() if cluster.token_path else None)
