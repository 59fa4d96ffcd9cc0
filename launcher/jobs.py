"""`w2sr submit`, `jobs`, `logs`, `cancel` and `resume`: the same on every kind of cluster.

How a job stands is told by two witnesses: the file its supervisor writes, and the backend that runs the supervisor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.home import Job, OpenCluster
    from launcher.substrate import Backend

# Beyond what the driver may take to commit its work.
CANCEL_MARGIN_S = 15.0
# The supervisor writes every few seconds.
SILENT_S = 60.0
POLL_S = 0.5


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the commands."""
    submit = commands.add_parser(
        "submit",
        parents=[debug],
        help="run a configuration on a cluster, detached from this terminal",
        description="Check a configuration, hand it to a cluster and return; the job goes on without this terminal.",
    )
    submit.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="override a value, for example train.learning_rate=1e-3")
    submit.add_argument("--cluster", required=True, metavar="NAME", help="cluster by its name, or its CLUSTER.yaml")
    submit.add_argument("--stage", action="append", default=[], metavar="STAGE", help="run only this stage; may be repeated")
    submit.add_argument("--array", action="append", default=[], metavar="key=a,b,c", help="one job for each value; may be repeated")
    submit.add_argument("--dry-run", action="store_true", help="check everything and show what would be submitted")
    submit.add_argument("--follow", action="store_true", help="go on with `w2sr logs -f`")
    submit.add_argument("--no-preflight", action="store_true", help="do not look for models and keys here: only the nodes have them")
    submit.set_defaults(command=_submit)
    table = commands.add_parser("jobs", parents=[debug], help="show how the submitted jobs stand")
    table.add_argument("--json", action="store_true", help="for programs")
    table.set_defaults(command=_table)
    logs = commands.add_parser("logs", parents=[debug], help="show or follow the log of a job or of a run")
    logs.add_argument("job", metavar="JOB_OR_RUN", help="a job's id, or a run folder")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends; Ctrl-C leaves the job alone")
    logs.add_argument("--all", action="store_true", help="every file of every attempt, also of ranks and actors")
    logs.set_defaults(command=_logs)
    cancel = commands.add_parser("cancel", parents=[debug], help="end a job; what it finished is kept")
    cancel.add_argument("job", metavar="JOB", help="a job's id, or its run folder")
    cancel.set_defaults(command=_cancel)
    resume = commands.add_parser("resume", parents=[debug], help="submit a job that ended once more; it goes on where it was")
    resume.add_argument("job", metavar="JOB", help="a job's id, or its run folder")
    resume.add_argument("--cluster", metavar="NAME", help="on another cluster than before")
    resume.add_argument("--follow", action="store_true", help="go on with `w2sr logs -f`")
    resume.set_defaults(command=_resume)


@dataclass(frozen=True)
class Standing:
    """How a job stands. `phase` is a word of launcher/job_state.py, or "lost"; `over`: nothing of it runs or is queued any more."""

    phase: str
    reason: str
    over: bool
    exit_code: int | None


def standing(job: Job) -> Standing:
    """Ask both witnesses. Never fails: a cluster that does not answer is told in `reason`."""
    from launcher import job_state

    if not job.folder.exists():
        return Standing("lost", f"its folder {job.folder} is gone", True, 1)
    state = job_state.read_state(job.folder)
    if state.ended and state.phase not in (job_state.REQUEUE, job_state.TERMINATED):
        return Standing(state.phase, state.reason, True, state.exit_code)
    seen = backend_state(job)
    state = job_state.read_state(job.folder)  # again: it may have ended while the backend was asked
    cancelled = (job.folder / job_state.CANCEL).exists()
    if state.ended:
        if state.phase in (job_state.REQUEUE, job_state.TERMINATED):
            if seen in ("pending", "running"):
                return Standing(job_state.PENDING, f"queued again ({state.reason})", False, None)
            if seen == "ended" and cancelled:  # while it was queued again: no supervisor was there to write it
                return Standing(job_state.CANCELLED, "cancelled", True, 130)
        return Standing(state.phase, state.reason, True, state.exit_code)
    if seen == "pending" and job.backend == "slurm" and state.heartbeat:
        return Standing(job_state.PENDING, "queued again by Slurm", False, None)
    silent_s = time.time() - state.heartbeat
    if seen == "ended" or (seen == "unknown" and silent_s > SILENT_S):
        # Should its supervisor live on where nobody sees it: it still holds the run folder's lock, and another one would wait for it.
        if cancelled:
            return Standing(job_state.CANCELLED, "cancelled", True, 130)
        if seen == "ended" or state.heartbeat:
            return Standing("lost", _how_lost(job, state.heartbeat, state.host), True, 1)
    return Standing(state.phase, state.reason, False, None)


def _how_lost(job: Job, heartbeat: float, host: str) -> str:
    from launcher.job_state import LOG

    if not heartbeat:
        return (
            f"its supervisor never began: see {job.folder / LOG}, and check that the head sees {job.run_dir}; then `w2sr resume {job.id}`"
        )
    return (
        f"no word of its supervisor on {host} for {age(time.time() - heartbeat)}; `w2sr cluster status {job.cluster}` and "
        f"`w2sr why {job.run_dir}`, then `w2sr resume {job.id}`"
    )


def backend_state(job: Job) -> str:
    """Return what the backend says of the supervisor: "pending", "running", "ended" or "unknown"."""
    from cluster.errors import ClusterError
    from w2sr.errors import UserError

    try:
        cluster, backend = where(job)
        return backend.state(cluster, job)
    except (ClusterError, UserError):
        return "unknown"  # the cluster's files are gone, or nobody answers


def where(job: Job) -> tuple[OpenCluster, Backend]:
    """Return the cluster and the backend of a job. Raises UserError when the cluster is not known any more."""
    from launcher.home import open_cluster
    from launcher.substrate import backend

    return open_cluster(job.cluster), backend(job.backend)


def resolve(name: str) -> Job:
    """Return a job by its id, or the latest of a run folder. Raises UserError when there is none."""
    from launcher.home import find_job
    from w2sr.errors import UserError

    folder = Path(name)
    if not folder.is_dir():
        return find_job(name)
    jobs = jobs_of(folder)
    if not jobs:
        raise UserError(f"no job was submitted for {folder}; give a job's id (`w2sr jobs`), or a run folder that a job works in")
    return jobs[-1]


def jobs_of(run_dir: Path) -> list[Job]:
    """Return the jobs of a run folder, oldest first."""
    from launcher.home import load_job

    return sorted((load_job(path.parent) for path in run_dir.glob("jobs/*/job.json")), key=lambda job: job.submitted_at)


def age(seconds: float) -> str:
    """Return a duration as people say it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def say(text: str) -> None:
    """Tell the person at the terminal; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def _table(arguments: argparse.Namespace) -> int:
    from launcher.home import known_jobs

    found = [(job, standing(job)) for job in known_jobs()]
    if arguments.json:
        rows = [
            {
                "id": job.id,
                "phase": stands.phase,
                "over": stands.over,
                "exit_code": stands.exit_code,
                "reason": stands.reason,
                "cluster": job.cluster,
                "run_dir": job.run_dir,
                "stages": job.stages,
                "submitted_at": job.submitted_at,
            }
            for job, stands in found
        ]
        print(json.dumps(rows, indent=1))
        return 0
    if not found:
        print("no jobs yet; `w2sr submit CONFIG --cluster NAME` makes one")
        return 0
    lines = [("JOB", "STATE", "AGE", "CLUSTER", "RUN", "")]
    lines += [
        (
            job.id,
            stands.phase,
            age(time.time() - job.submitted_at),
            job.cluster,
            job.run_dir,
            "" if stands.reason == "done" else stands.reason,
        )
        for job, stands in found
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[5]]).rstrip())
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from launcher.job_state import CANCEL
    from w2sr.errors import UserError

    job = resolve(arguments.job)
    before = standing(job)
    if before.over:
        raise UserError(f"job {job.id} has ended already ({before.phase}{': ' + before.reason if before.reason else ''})")
    (job.folder / CANCEL).touch()
    if backend_state(job) != "pending":  # one that is still queued has no supervisor to be polite to
        _wait_for_the_end(job)
    if not standing(job).over:
        cluster, backend = where(job)
        say(f"ending {job.id} by force")
        backend.stop(cluster, job)
    print(f"{job.id}: cancelled; what was finished is kept. `w2sr resume {job.id}` goes on")
    return 0


def _wait_for_the_end(job: Job) -> None:
    from launcher.job_state import CONFIG
    from launcher.supervisor import GRACE_S
    from w2sr.config import load_config

    bound_s = load_config(job.folder / CONFIG).generate.drain_timeout_s + GRACE_S + CANCEL_MARGIN_S
    began, said = time.monotonic(), 0.0
    while not standing(job).over:
        waited_s = time.monotonic() - began
        if waited_s > bound_s:
            return
        if waited_s - said > 5:
            said = waited_s
            say(f"waiting until {job.id} has committed its work ({waited_s:.0f} s, at most {bound_s:.0f} s)")
        time.sleep(POLL_S)


def _submit(arguments: argparse.Namespace) -> int:
    from launcher.submit import submit

    return submit(arguments)


def _resume(arguments: argparse.Namespace) -> int:
    from launcher.submit import resume

    return resume(resolve(arguments.job), arguments.cluster, arguments.follow)


def _logs(arguments: argparse.Namespace) -> int:
    from launcher.logs import show_logs

    return show_logs(arguments.job, follow=arguments.follow, every_file=arguments.all)
