"""Two hosts on one machine: network namespaces with their own addresses and host names, joined by a bridge, each with its own sshd.

The test process stays outside, as a login node does: it has an address on the bridge and no part in the cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b")
# Where Debian keeps sshd and ip; a plain user's PATH lacks it.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
DEADLINE_S = 180.0


def missing() -> str:
    """Return why hosts cannot be made here; an empty string when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacks = [name for name in ("ip", "sshd", "ssh", "ssh-keygen", "ss", "unshare", "rsync") if shutil.which(name, path=PATH) is None]
    if lacks:
        return f"{', '.join(lacks)} not installed (apt-get install iproute2 openssh-server openssh-client util-linux rsync)"
    probe = f"w2p{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], env=os.environ | {"PATH": PATH}, capture_output=True, check=False)
    return "" if made.returncode == 0 else f"network namespaces cannot be made here: {made.stderr.strip()}"


def sh(*command: object, check: bool = True) -> str:
    """Run a command and return its output."""
    done = subprocess.run([str(part) for part in command], env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Hosts:
    """`cluster_file` names both hosts, `a` first; W2SR_HOME is `home`. All helpers act on one host by its name."""

    folder: Path
    addresses: dict[str, str]
    namespaces: dict[str, str]
    sshds: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def cluster_file(self) -> Path:
        """A CLUSTER.yaml of both hosts, with 4 processors and 2 pretended GPUs each."""
        return self.folder / "pair.yaml"

    @property
    def ssh_config(self) -> Path:
        """What `ssh -F` needs to reach the hosts."""
        return self.folder / "ssh_config"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a person on the login node."""
        return {
            **os.environ,
            "W2SR_HOME": str(self.folder / "home"),
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *arguments: object, on: str | None = None) -> list[str]:
        """Return a w2sr command, typed on a host or on the login node."""
        there = ["ip", "netns", "exec", self.namespaces[on]] if on else []
        return [*there, sys.executable, "-m", "launcher", *map(str, arguments)]

    def w2sr(self, *arguments: object, code: int = 0, cwd: Path | None = None, timeout_s: float = DEADLINE_S, on: str | None = None) -> str:
        """Run a w2sr command, expect its exit code, and return what it printed, stdout first."""
        done = subprocess.run(
            self.command(*arguments, on=on),
            env=self.environment,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == code, f"w2sr {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def write_cluster(self, name: str, **changes: object) -> Path:
        """Write a CLUSTER.yaml like `cluster_file`, with other values, and return its path."""
        import yaml

        values = {
            "kind": "ssh",
            "hosts": [{"host": host, "cpus": 4, "gpus": 2, "address": self.addresses[host]} for host in NAMES],
            "ssh_options": ["-F", str(self.ssh_config)],
            "python": sys.executable,
            "temp_dir": str(self.folder),
            "ready_timeout_s": 120,
            "env": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
        return path

    def run(self, host: str, *command: object, check: bool = True) -> str:
        """Run a command in a host's network and return its output."""
        return sh("ip", "netns", "exec", self.namespaces[host], *command, check=check)

    def pids(self, host: str) -> list[int]:
        """Return the host's processes, sshd among them."""
        return [int(pid) for pid in sh("ip", "netns", "pids", self.namespaces[host], check=False).split()]

    def kill_host(self, host: str) -> None:
        """Take the host's power away: every process in its network is killed at once; it does not answer until `start_host`."""
        deadline = time.monotonic() + DEADLINE_S
        while pids := self.pids(host):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"host {host} does not die: {pids}"
            time.sleep(0.05)
        self.sshds.pop(host).wait()

    def start_host(self, host: str, mounts: Mapping[Path, Path] | None = None) -> None:
        """Switch the host on. `mounts` puts other folders in the place of what it would see: target -> source."""
        binds = "".join(f"mount --bind '{source}' '{target}' && " for target, source in (mounts or {}).items())
        script = f"hostname {host} && mkdir -p /run/sshd && {binds} exec $(command -v sshd) -D -e -f {self.folder}/{host}/sshd_config"
        with open(self.folder / host / "sshd.log", "ab") as log:
            self.sshds[host] = subprocess.Popen(
                ["ip", "netns", "exec", self.namespaces[host], "unshare", "--mount", "--uts", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH},
                start_new_session=True,
            )
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((self.addresses[host], 22)) == 0:
                    return
            said = (self.folder / host / "sshd.log").read_text()
            assert self.sshds[host].poll() is None, f"sshd of {host} ended: {said}"
            assert time.monotonic() < deadline, f"sshd of {host} does not answer: {said}"
            time.sleep(0.05)

    def ssh(self, host: str, command: str) -> str:
        """Run a command on a host by ssh and return its output."""
        return sh("ssh", "-F", self.ssh_config, host, command)

    def leftovers(self) -> list[str]:
        """Return what a cluster that is down must not leave: processes of nodes, and their folders."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"W2SR_NODE={self.folder}".encode() in (entry / "environ").read_bytes():
                        found.append(self.command_line(int(entry.name)))
        for host in self.namespaces:
            running = filter(None, map(self.command_line, self.pids(host)))
            found += [line for line in running if host not in self.sshds or "sshd" not in line]
        return found + [str(path) for path in self.folder.glob("w2sr-*")]

    @staticmethod
    def command_line(pid: int) -> str:
        """Return what a process was started as; "" for one that has just ended, which has none while it waits to be reaped."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""


@contextlib.contextmanager
def two_namespaces() -> Iterator[Hosts]:
    """Make the hosts `a` and `b`; nothing of them is left at the end."""
    number = os.getpid()
    net = f"10.{64 + number % 128}.{number // 128 % 256}"
    folder = Path(tempfile.mkdtemp(prefix="w2s-", dir="/tmp"))  # short: Ray makes sockets below it
    hosts = Hosts(folder, {name: f"{net}.{index}" for index, name in enumerate(NAMES, 1)}, {name: f"w2s{number}{name}" for name in NAMES})
    bridge = f"w2b{number}"
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        sh("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(sh, "ip", "link", "del", bridge, check=False)
        sh("ip", "addr", "add", f"{net}.254/24", "dev", bridge)
        sh("ip", "link", "set", bridge, "up")
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
        for index, name in enumerate(NAMES):
            space, outer = hosts.namespaces[name], f"w2v{number}{name}"
            sh("ip", "netns", "add", space)
            undo.callback(sh, "ip", "netns", "del", space, check=False)
            undo.callback(_off, hosts, name)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            undo.callback(sh, "ip", "link", "del", outer, check=False)
            sh("ip", "link", "set", outer, "master", bridge, "up")
            sh("ip", "-n", space, "addr", "add", f"{net}.{index + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                sh("ip", "-n", space, "link", "set", device, "up")
            sh("ip", "-n", space, "route", "add", "default", "via", f"{net}.254")
            _configure(hosts, name)
            hosts.start_host(name)
        hosts.ssh_config.write_text(_ssh_config(hosts))
        hosts.write_cluster("pair")
        yield hosts


def _off(hosts: Hosts, name: str) -> None:
    if name in hosts.sshds:
        hosts.kill_host(name)


def _configure(hosts: Hosts, name: str) -> None:
    folder = hosts.folder / name
    folder.mkdir(mode=0o700)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")
    (folder / "authorized_keys").write_text((hosts.folder / "key.pub").read_text())
    lines = (
        f"ListenAddress {hosts.addresses[name]}",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "PidFile none",
        "UsePAM no",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
    )
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    public = (folder / "host_key.pub").read_text().split()
    with open(hosts.folder / "known_hosts", "a") as file:
        file.write(f"{hosts.addresses[name]} {public[0]} {public[1]}\n")


def _ssh_config(hosts: Hosts) -> str:
    entries = [f"Host {name}\n  HostName {address}\n" for name, address in hosts.addresses.items()]
    common = f"  User root\n  IdentityFile {hosts.folder}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {hosts.folder}/known_hosts\n"
    return "".join(entries) + f"Host *\n{common}  StrictHostKeyChecking yes\n"
