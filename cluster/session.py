"""The Ray session of this process: private, authenticated, and gone afterwards.

A session always ends with Ray shut down and its folder removed, after an exception and after Ctrl-C too. If this process is killed
outright, the kernel ends Ray's processes with it (Ray asks for that on Linux).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from cluster.ray_settings import LONGEST_TEMP_DIR, LOOPBACK_SETTINGS, OBJECT_STORE_BYTES, ray_settings
from cluster.topology import Node, Topology

# Ray's own processes listen on about ten ports, each of its workers on one, and a training group on a few.
NEEDED_PORTS = 24
CONNECT_TIMEOUT_S = 10.0
NVIDIA_SMI_S = 60.0


@contextmanager
def ray_session(spec: ClusterSpec) -> Iterator[None]:
    """Start a private Ray on this machine, or connect to `spec.address`; always shut down at the end.

    A private Ray wants a token from everybody who talks to it; the token lives in a file that only this user can read and is never an
    argument or an output. A cluster at an address is reached with the token of the environment (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH).
    Raises ClusterError when the machine has fewer processors than `spec` asks for, no free ports, or the address does not answer.
    """
    _check_machine(spec)
    with contextlib.ExitStack() as cleanup:
        folder = _private_folder(cleanup) if spec.address is None else None
        cleanup.enter_context(_environment(_variables(folder)))
        ray = _import_ray()
        assert not ray.is_initialized(), "this process has a Ray session already"
        cleanup.callback(ray.shutdown)
        with _sigterm_kept():
            if folder is not None:
                check_ports()
                _start(ray, spec, folder)
            else:
                _connect(ray, spec)
        yield


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give SIGTERM back to whom it belonged: Ray takes it while it starts, and would end this process with code 15 and no clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def require(what: str, cpus: float, gpus: float, spec: ClusterSpec) -> None:
    """Raise ClusterError unless the session's cluster has `cpus` CPUs and `gpus` GPUs in all.

    `what` names the setting that asks for them, for example "train.num_ranks=4 with 1 CPU each". Without this check Ray waits for ever,
    which is right only while lost nodes may come back.
    Works before the session is open too; then the machine is asked.
    """
    has_cpus, has_gpus = _capacity(spec)
    where = f"the cluster at {spec.address}" if spec.address else "this machine"
    for kind, needed, has in (("CPU", cpus, has_cpus), ("GPU", gpus, has_gpus)):
        if needed > has and not _has_lost_nodes():
            hint = "" if spec.address or (spec.num_cpus if kind == "CPU" else spec.num_gpus) is None else f" (cluster.num_{kind.lower()}s)"
            raise ClusterError(
                f"{what} needs {_count(needed, kind)}; {where} has {_count(has, kind)}{hint}: ask for fewer, or for less of a {kind} each"
            )


def _has_lost_nodes() -> bool:
    """Whether nodes of the cluster died since its head began: they may come back, and who needs them waits and says so."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and any(not node["Alive"] for node in ray.nodes())


def machine_cpus() -> int:
    """Return the number of processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_gpus() -> int:
    """Return the number of NVIDIA GPUs this process may use, by nvidia-smi and CUDA_VISIBLE_DEVICES.

    Raises ClusterError when nvidia-smi hangs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_S).stdout
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"`nvidia-smi -L` said nothing in {NVIDIA_SMI_S:g} s: a GPU or its driver hangs; reboot the machine, or do "
            "without GPUs: CUDA_VISIBLE_DEVICES="
        ) from error
    found = sum(line.startswith("GPU ") for line in listed.splitlines())
    return found if visible is None else min(found, _num_visible(visible, found))


def _num_visible(visible: str, found: int) -> int:
    """Return how many devices CUDA takes of a list: those before the first entry that names none."""
    entries = [entry.strip() for entry in visible.split(",")]
    named = [entry.startswith(("GPU-", "MIG-")) or (entry.isdecimal() and int(entry) < found) for entry in entries]
    return [*named, False].index(False)


def topology_of(spec: ClusterSpec) -> Topology | None:
    """Return the nodes that a session has, or will have; None when that is a cluster at an address to which no session is open yet."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return _live_topology(ray.nodes())
    if spec.address is not None:
        return None
    cpus, gpus = _capacity(spec)
    return Topology((Node("this machine", cpus, int(gpus)),))


def _live_topology(nodes: list[dict[str, Any]]) -> Topology:
    """Return the nodes that are alive, by name; a name that occurs twice gets the beginning of its node's id."""
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: (node["NodeName"], node["NodeID"]))
    names = [node["NodeName"] for node in alive]
    found = []
    for node, name in zip(alive, names, strict=True):
        has = node["Resources"]
        kinds = [key.removeprefix("accelerator_type:") for key in has if key.startswith("accelerator_type:")]
        labels = {key: value for key, value in node.get("Labels", {}).items() if not key.startswith("ray.io/")}
        unique = name if names.count(name) == 1 else f"{name}-{node['NodeID'][:6]}"
        found.append(
            Node(unique, has.get("CPU", 0.0), int(has.get("GPU", 0)), kinds[0] if kinds else "", int(has.get("memory", 0)), labels)
        )
    return Topology(tuple(found))


def _check_machine(spec: ClusterSpec) -> None:
    if spec.address is not None:
        return
    for name, asked, has in (("num_cpus", spec.num_cpus, machine_cpus), ("num_gpus", spec.num_gpus, machine_gpus)):
        if asked is not None and asked > has():
            raise ClusterError(f"cluster.{name}={asked}, but this machine has {has()}; give at most that, or leave it out to use all")


def check_ports(number: int = NEEDED_PORTS) -> None:
    """Raise ClusterError unless `number` ports are free on loopback. Without this check Ray waits half a minute and names no cause."""
    with contextlib.ExitStack() as held:
        for found in range(number):
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", 0))
            except OSError as error:
                raise ClusterError(
                    f"only {found} of the {number} ports that Ray needs are free on 127.0.0.1 ({error.strerror}); end programs that hold "
                    "many connections, or widen the range in /proc/sys/net/ipv4/ip_local_port_range"
                ) from error


def _capacity(spec: ClusterSpec) -> tuple[float, float]:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        found = ray.cluster_resources()
        return found.get("CPU", 0.0), found.get("GPU", 0.0)
    if spec.address is not None:
        return float("inf"), float("inf")  # not known before the session is open
    cpus = spec.num_cpus if spec.num_cpus is not None else machine_cpus()
    return float(cpus), float(spec.num_gpus if spec.num_gpus is not None else machine_gpus())


def _count(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'' if number == 1 else 's'}"


def _private_folder(cleanup: contextlib.ExitStack) -> Path:
    parent = Path(tempfile.gettempdir())
    parent = parent if len(str(parent)) <= LONGEST_TEMP_DIR - 20 else Path("/tmp")
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix="w2sr-ray-", dir=parent))
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)  # Ray's last log lines may race with the removal
    file = cleanup.enter_context(os.fdopen(os.open(folder / "token", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w"))
    fcntl.flock(file, fcntl.LOCK_EX)  # held while this process lives: by it a later session knows that the folder is in use
    file.write(_token())
    file.flush()
    return folder


def _sweep(parent: Path) -> None:
    """Remove the folders, and the tokens in them, of this user's sessions that were killed outright."""
    for token in parent.glob("w2sr-ray-*/token"):
        try:
            with open(token, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A younger one may be about to be locked.
                if time.time() - os.fstat(file.fileno()).st_mtime > 60:
                    shutil.rmtree(token.parent, ignore_errors=True)
        except OSError:
            continue  # in use, another user's, or just removed by somebody else


@functools.cache
def _token() -> str:
    # One for the life of this process: Ray's driver side reads the token once and keeps it, also for a second session.
    return secrets.token_hex(32)


def _variables(folder: Path | None) -> dict[str, str | None]:
    # A worker's OMP_NUM_THREADS is set by Ray to the CPUs of its actor, unless the environment has one.
    if folder is None:
        return {**ray_settings()}
    return {
        **ray_settings(),
        **LOOPBACK_SETTINGS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_AUTH_TOKEN": None,  # would win over the file
        "RAY_ADDRESS": None,
    }


@contextmanager
def _environment(variables: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    _put(variables)
    try:
        yield
    finally:
        _put(before)


def _put(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _import_ray() -> Any:
    early = "ray" in sys.modules
    import ray  # after the environment is set, because Ray reads it once, here

    if early:
        # Somebody imported Ray before: without this its driver side would not send the token. (By name: Ray's stubs lack it.)
        importlib.import_module("ray._raylet").Config.initialize("")
    return ray


def _start(ray: Any, spec: ClusterSpec, folder: Path) -> None:
    ray.init(
        address="local",
        num_cpus=spec.num_cpus if spec.num_cpus is not None else machine_cpus(),
        num_gpus=spec.num_gpus if spec.num_gpus is not None else machine_gpus(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder / "ray"),  # Ray opens it to everybody; the folder around it stays closed
    )


def _connect(ray: Any, spec: ClusterSpec) -> None:
    advice = "check cluster.address and that the cluster is up, or leave cluster.address out for a private Ray on this machine"
    host, colon, port = str(spec.address).removeprefix("ray://").rpartition(":")
    try:
        if colon:
            # Ray itself tries a dead address for a minute and then aborts the process.
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        ray.init(address=spec.address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        if "InvalidAuthToken" in f"{error} {error.__cause__}":
            raise ClusterError(
                f"the Ray cluster at {spec.address} refused this client: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token"
            ) from error
        raise ClusterError(f"cannot connect to the Ray cluster at {spec.address} ({error}): {advice}") from error
