"""`ray start` on this machine: its command, its environment, when it is ready, and its last words. Ray itself is not imported."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.doctor.machine import look_at_interfaces
from cluster.errors import ClusterError
from cluster.ray_settings import LOOPBACK_SETTINGS, OBJECT_STORE_BYTES, ray_settings
from launcher.node_folder import MARK, NodeFolder
from launcher.node_spec import NodeSpec
from launcher.ports import Ports

POLL_S = 0.1
HEALTH_TIMEOUT_S = 5.0
LAST_LINES = 12
_LOGS = ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out", "dashboard.err", "dashboard_agent.log", "runtime_env_agent.log")
_SET_PDEATHSIG = 1
_SIOCGIFADDR = 0x8915


class RayEnded(Exception):
    """Ray did not come up, or ended; the message has its last words."""


def command(spec: NodeSpec, folder: NodeFolder, ports: Ports, address: str) -> list[str]:
    """Return the arguments of `ray start --block`. No secret is among them."""
    script = Path(sys.executable).parent / "ray"
    ray = [str(script)] if script.exists() else [sys.executable, "-m", "ray.scripts.scripts"]
    values: dict[str, object] = {
        "node-ip-address": address,
        "node-name": socket.gethostname(),
        "temp-dir": folder.temp_dir,
        "object-store-memory": OBJECT_STORE_BYTES,
        "min-worker-port": ports.workers[0],
        "max-worker-port": ports.workers[1],
        "log-color": "false",
    }
    head_only = {"port", "dashboard-port", "ray-client-server-port"}
    values |= {name: port for name, port in ports.services.items() if spec.head is None or name not in head_only}
    values |= {name: value for name, value in (("num-cpus", spec.num_cpus), ("num-gpus", spec.num_gpus)) if value is not None}
    if spec.labels:
        values["labels"] = ",".join(f"{key}={value}" for key, value in spec.labels.items())
    if spec.head is None:
        # The autoscaler's monitor has nothing to scale here, and would serve metrics to everybody.
        role = ["--head", "--no-monitor", "--include-dashboard=true", f"--dashboard-host={spec.dashboard_host}"]
    else:
        role = [f"--address={spec.head}"]
    return [*ray, "start", "--block", "--disable-usage-stats", *role, *(f"--{name}={value}" for name, value in values.items())]


def environment(spec: NodeSpec, folder: NodeFolder, token: Path, address: str) -> dict[str, str]:
    """Return the environment of Ray and of everything it starts. Raises ClusterError about `env_file`."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_JOB_ID")}
    secrets = read_env_file(Path(spec.env_file).expanduser()) if spec.env_file else {}
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    return {
        **inherited,
        "PYTHONPATH": path,
        **ray_settings(),
        **(LOOPBACK_SETTINGS if address.startswith("127.") else {}),
        **_gloo(address),
        **spec.env,
        **secrets,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        MARK: str(folder.path),
        "SPT_NOENV": "1",  # else setproctitle, which Ray's workers and agents call, overwrites the environment that /proc shows
    }


def _gloo(address: str) -> dict[str, str]:
    """Name the interface of the node's address: gloo would take what the host name resolves to, on Debian a loopback address."""
    names = [each.name for each in look_at_interfaces() if each.address == address]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def read_env_file(path: Path) -> dict[str, str]:
    """Return the KEY=value lines of a file that only its owner may read. Raises ClusterError otherwise; never shows a value."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ClusterError(f"cannot read env_file {path} on {socket.gethostname()}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ClusterError(f"env_file {path} on {socket.gethostname()} is not text in UTF-8; save it as such") from None  # it shows bytes
    if stat.S_IMODE(mode) & 0o077:
        raise ClusterError(f"env_file {path} on {socket.gethostname()} can be read by others (mode {stat.S_IMODE(mode):o}); chmod 600 it")
    found = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.removeprefix("export ").partition("=")
        if line.strip() and not line.lstrip().startswith("#"):
            if not equals or not name.strip().isidentifier():
                raise ClusterError(f"line {number} of env_file {path} is not KEY=value")
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def own_address(spec: NodeSpec) -> str:
    """Return the address by which the other nodes reach this one. Raises ClusterError when `interface` has none."""
    if spec.address:
        return spec.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if spec.interface:
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", spec.interface.encode()[:15]))
            except OSError as error:
                names = ", ".join(name for _, name in socket.if_nameindex())
                raise ClusterError(
                    f"network.interface {spec.interface!r} has no IPv4 address on {socket.gethostname()}; it has {names}"
                ) from error
            return socket.inet_ntoa(found[20:24])
        try:
            # Connecting a datagram socket sends nothing; it only chooses the route: to the head, or the default one (TEST-NET-1).
            probe.connect((spec.head.rpartition(":")[0] if spec.head else "192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"  # a machine without a network
        return str(probe.getsockname()[0])


def launch(arguments: list[str], variables: dict[str, str], folder: NodeFolder) -> subprocess.Popen[bytes]:
    """Start Ray. The kernel kills it when this process dies, and with it (Ray asks for that) its own processes."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with open(folder.ray_log, "ab") as log:
        return subprocess.Popen(
            arguments,
            env=variables,
            cwd=folder.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: prctl(_SET_PDEATHSIG, signal.SIGKILL),
        )


def wait_ready(
    ray: subprocess.Popen[bytes],
    spec: NodeSpec,
    folder: NodeFolder,
    ports: Ports,
    deadline: float,
    check: Callable[[], None] | None = None,
) -> None:
    """Return when GCS and this node's raylet answer. Raises RayEnded when Ray ends before, or at `deadline` (of time.monotonic).

    `check` is called while it waits, and may raise.
    """
    while not is_healthy(spec, ports):
        if check:
            check()
        if ray.poll() is not None:
            raise RayEnded(f"Ray ended with code {ray.returncode} on {socket.gethostname()} before it was ready:\n{last_words(folder)}")
        if time.monotonic() > deadline:
            raise RayEnded(f"Ray on {socket.gethostname()} was not ready after {spec.ready_timeout_s:g} s:\n{last_words(folder)}")
        time.sleep(POLL_S)


def is_healthy(spec: NodeSpec, ports: Ports) -> bool:
    """Tell whether GCS knows this node's raylet as alive and, on the head, the dashboard answers."""
    host = "127.0.0.1" if spec.dashboard_host in ("0.0.0.0", "localhost") else spec.dashboard_host
    return _answers("127.0.0.1", ports.services["dashboard-agent-listen-port"], "/api/local_raylet_healthz") and (
        spec.head is not None or _answers(host, ports.services["dashboard-port"], "/api/gcs_healthz")
    )


def _answers(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def last_words(folder: NodeFolder) -> str:
    """Return the last lines of `ray start` and the last errors in Ray's own logs."""
    said = [line for line in _lines(folder.ray_log) if line.strip()][-LAST_LINES:]
    for name in _LOGS:
        lines = [line for line in _lines(folder.temp_dir / "session_latest/logs" / name) if line.strip()]
        if name.endswith((".out", ".log")):
            lines = [line for line in lines if " E " in line or " C " in line or "ERROR" in line]
        said += [f"{name}: {line}" for line in lines[-3:]]
    return "\n".join(said) or "(it said nothing)"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
