"""The sbatch script of a job, of an array of jobs, or of an allocation that holds Ray: a pure function of the cluster file and folders.

It names files and says how much is asked of Slurm; what happens in the allocation is launcher/slurm_batch.py. No secret is in it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster_file import SlurmCluster
from w2sr.errors import UserError

LOG = "supervisor.log"
# How much earlier than it is told to Slurm may send the signal before the end of the time.
SIGNAL_EARLY_S = 60
_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True)
class Places:
    """What a script needs to know of where things lie: the state folder and our packages, both seen by all nodes."""

    home: Path
    root: Path


def job_script(file: SlurmCluster, name: str, folder: Path, places: Places) -> str:
    """Return the script of one job. Raises UserError about values that Slurm could not be told."""
    return _script(file, name, _filename(folder) + f"/{LOG}", shlex.quote(str(folder)), places)


def array_script(file: SlurmCluster, name: str, links: Path, num_jobs: int, places: Places) -> str:
    """Return the script of an array. `links` is a folder in which 0, 1, ... are links to the jobs' folders. Raises UserError as above."""
    folder = f'{shlex.quote(str(links))}/"$SLURM_ARRAY_TASK_ID"'
    return _script(file, name, _filename(links) + f"/%a/{LOG}", folder, places, array=f"0-{num_jobs - 1}")


def hold_script(file: SlurmCluster, folder: Path, places: Places) -> str:
    """Return the script of `cluster up`: nodes on which Ray runs until they are given back. Raises UserError as above."""
    _check_time(file, held_stop_s(file))
    return _script(file, f"w2sr-{file.name}", _filename(folder) + f"/{LOG}", shlex.quote(str(folder)), places)


def held_stop_s(file: SlurmCluster) -> int:
    """Return how many seconds before the end of held nodes' time the jobs on them stop: grace_s before the nodes get Slurm's signal."""
    return 2 * file.grace_s + SIGNAL_EARLY_S


def _script(file: SlurmCluster, name: str, output: str, folder: str, places: Places, array: str | None = None) -> str:
    """`output` is Slurm's pattern of a file name, `folder` a shell word."""
    _check_time(file, file.grace_s)
    options: dict[str, object | None] = {
        "job-name": name,
        "array": array,
        "nodes": file.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": file.cpus_per_node,
        "mem": file.mem,
        "gres": file.gres,
        "gpus-per-node": None if file.gres else file.gpus_per_node or None,
        "time": file.time_limit,
        "partition": file.partition,
        "account": file.account,
        "qos": file.qos,
        "constraint": file.constraint,
        "reservation": file.reservation,
        "signal": f"B:TERM@{file.grace_s}",
        "open-mode": "append",
        "output": output,
        "chdir": str(places.home),
    }
    lines = [f"#SBATCH --{key}={_value(key, str(value))}" for key, value in options.items() if value is not None]
    # A lost node does not end the job: it goes on with the others.
    lines += ["#SBATCH --no-kill", f"#SBATCH --{'requeue' if file.requeue else 'no-requeue'}"]
    lines += [f"#SBATCH {_further(option)}" for option in file.sbatch]
    environment = {"W2SR_HOME": str(places.home), **file.environment()}
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "",
            "set -e",
            *file.setup,
            *(f"export {_variable(key)}={shlex.quote(value)}" for key, value in environment.items()),
            f'export PYTHONPATH={shlex.quote(str(places.root))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            # exec: the signals that Slurm sends to the script are for the process that knows what to do.
            f"exec {shlex.quote(file.python)} -u -m launcher.slurm_batch {folder}",
            "",
        ]
    )


def limit_s(time_limit: str) -> float | None:
    """Return the seconds of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for no limit.

    Raises UserError when it is none of them.
    """
    if time_limit.lower() in ("infinite", "unlimited", "-1", "0"):
        return None
    found = _LIMIT.fullmatch(time_limit)
    if found is None:
        raise UserError(f"time_limit={time_limit!r} is not a time of Slurm; give minutes, H:M:S or D-H:M:S, for example 8:00:00")
    numbers = [int(found[key]) for key in ("first", "second", "third") if found[key] is not None]
    if found["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return int(found["days"] or 0) * 86400.0 + hours * 3600 + minutes * 60 + seconds


def _check_time(file: SlurmCluster, stop_s: int) -> None:
    """Raise UserError when less than grace_s is left to work in, as work stops `stop_s` before the end."""
    total_s = limit_s(file.time_limit) if file.time_limit is not None else None
    if total_s is not None and total_s < stop_s + file.grace_s:
        raise UserError(
            f"time_limit={file.time_limit} ({total_s:g} s) leaves no time to work, as work stops {stop_s} s before it "
            f"(grace_s={file.grace_s}); give at least {stop_s + file.grace_s} s, or a smaller grace_s"
        )


def _value(key: str, value: str) -> str:
    """Return a value as an #SBATCH line holds it: Slurm knows double quotes, and backslashes within them."""
    if not value or not value.isprintable():
        raise UserError(f"{key}={value!r} cannot be told to Slurm; give a value without line breaks and control characters")
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _variable(key: str) -> str:
    if not (key.isascii() and key.isidentifier()):
        raise UserError(f"env: {key!r} is not the name of a variable; give letters, digits and underscores")
    return key


def _further(option: str) -> str:
    if not option.startswith("-") or not option.isprintable():
        raise UserError(f"sbatch: {option!r} is not an option of sbatch; give for example --exclusive or --mail-type=END, one an entry")
    return option


def _filename(folder: Path) -> str:
    """Return a path as a pattern of Slurm's: a percent sign stands for itself when doubled. A backslash would switch patterns off."""
    if "\\" in str(folder):
        raise UserError(f"{folder} has a backslash in its name, and Slurm could not write its log there; choose another folder")
    return str(folder).replace("%", "%%")
