"""`w2sr doctor`: what is wrong with the machines, before a run finds out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.config import ClusterSpec
    from cluster.doctor.examine import Examination, Question
    from launcher.home import OpenCluster

EPILOG = (
    "Exit code: 0 all well (there may be warnings), 1 a fault of ours, 2 a mistake in the call or no cluster there; otherwise that of the "
    "first area in which something failed: 10 nodes, 11 gpu, 12 versions, 13 network, 14 filesystem, 15 clock, 16 limits, 17 files."
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "look at every node: GPUs, versions, network, shared folder, clocks, limits, models"
    command = commands.add_parser("doctor", parents=[debug], help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG)
    where = command.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="NAME", help="a cluster that is up (default: this machine)")
    where.add_argument("--address", metavar="HOST:PORT", help="any Ray cluster; its token by RAY_AUTH_TOKEN_PATH")
    command.add_argument("--config", type=Path, metavar="CONFIG", help="look for the models and files of this configuration too")
    command.add_argument("--shared", type=Path, metavar="DIR", help="folder that all nodes share (default: where run_dir of CONFIG is)")
    command.add_argument("--no-bandwidth", action="store_true", help="leave out the measurements between nodes")
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="longest wait for the nodes' answers, and 3 minutes for bandwidth (default: 60)",
    )
    command.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    command.set_defaults(command=_doctor)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _doctor(arguments: argparse.Namespace) -> int:
    import json

    from cluster.doctor.findings import Finding, exit_code
    from cluster.doctor.render import render

    cluster = _cluster(arguments.cluster)
    if cluster is not None and cluster.file.kind != "local":
        # Only a node's processes can join Ray, and an address does not tell whether this is one: 127.0.0.1 may be the end of a tunnel.
        from launcher.doctor_job import examine_from_head

        # Each of some ten questions may take the timeout, the measurement of bandwidth 3 minutes, and the job has to start.
        found = examine_from_head(cluster, _words(arguments), 15 * arguments.timeout + 180, _say)
    else:
        examination = _examine(_question(arguments), _spec(arguments.address, cluster))
        found = {"exit_code": exit_code(examination.findings), **examination.as_json()}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(render([Finding(**row) for row in found["findings"]]))
    return int(found["exit_code"])


def _question(arguments: argparse.Namespace) -> Question:
    """Return what to look at. Raises UserError for a configuration that is not one."""
    from cluster.doctor.examine import Question
    from w2sr.config import load_config
    from w2sr.wanted import wanted_paths

    folder: Path | None = arguments.shared
    if arguments.config is None:
        return Question((), _text(folder), not arguments.no_bandwidth, timeout_s=arguments.timeout)
    config = load_config(arguments.config)
    if folder is None:
        run_dir = Path(config.run_dir).expanduser().absolute()
        folder = next(each for each in (run_dir, *run_dir.parents) if each.is_dir())
    return Question(wanted_paths(config), _text(folder), not arguments.no_bandwidth, timeout_s=arguments.timeout)


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.expanduser().absolute())


def _cluster(name: str | None) -> OpenCluster | None:
    """Return the named cluster. Raises UserError for one that is unknown or down."""
    if name is None:
        return None
    from launcher.home import open_cluster

    cluster = open_cluster(name)
    cluster.up()
    return cluster


def _words(arguments: argparse.Namespace) -> list[str]:
    """Return the same call for the head, whose paths are taken to be ours."""
    words = ["--timeout", str(arguments.timeout)]
    for option, path in (("--config", arguments.config), ("--shared", arguments.shared)):
        words += [option, str(path.expanduser().absolute())] if path is not None else []
    return words + ["--no-bandwidth"] * arguments.no_bandwidth


def _spec(address: str | None, cluster: OpenCluster | None) -> ClusterSpec:
    """Return where Ray is, with what it wants to know in the environment."""
    import os

    from cluster.config import ClusterSpec

    if cluster is None:
        return ClusterSpec(address=address)
    os.environ.update(cluster.environment())
    return ClusterSpec(address=cluster.address)


def _examine(question: Question, spec: ClusterSpec) -> Examination:
    from cluster.doctor.examine import examine
    from cluster.session import ray_session

    with ray_session(spec):
        return examine(question, _say)


def _say(text: str) -> None:
    print(f"doctor: {text}", file=sys.stderr)
