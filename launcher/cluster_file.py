"""What a CLUSTER.yaml may say: which machines there are and how they are reached. The same file serves every job."""

from __future__ import annotations

import os.path
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, field_validator, model_validator

from w2sr.config import check_values, read_values
from w2sr.errors import UserError
from w2sr.schema import StrictModel

_SECRET = re.compile(r"(^|_)((API)?KEYS?|TOKEN|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", re.ASCII)
# The node's folder below it, w2sr-12345678, leaves Ray's sockets just enough (launcher/node_spec.py).
LONGEST_TEMP_DIR = 24
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class NetworkConfig(StrictModel):
    """Which network Ray, gloo and NCCL use."""

    interface: str | None = Field(None, description="Interface whose address nodes use, for example ib0. None: the default route's.")
    infiniband: str | None = Field(None, description="NCCL_IB_HCA: the InfiniBand or RoCE adapters, for example mlx5_0,mlx5_1.")
    nccl: dict[str, str] = Field(default_factory=dict, description="Other NCCL settings without their prefix, for example {DEBUG: WARN}.")

    def environment(self) -> dict[str, str]:
        """Return the variables that say the same to NCCL and gloo."""
        found = {f"NCCL_{key}": value for key, value in self.nccl.items()}
        if self.infiniband:
            found["NCCL_IB_HCA"] = self.infiniband
        if self.interface:
            found |= {"NCCL_SOCKET_IFNAME": self.interface, "GLOO_SOCKET_IFNAME": self.interface}
        return found


class _Cluster(StrictModel):
    """What all kinds have."""

    name: str = Field(description="What commands call it. Default: the file's name.")
    python: str = Field(default_factory=lambda: sys.executable, description="Python of w2sr's environment, the same path on every node.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment of every process on every node. Not for secrets.")
    env_file: str | None = Field(None, description="File on the nodes with KEY=value lines, for secrets as an endpoint's key.")
    network: NetworkConfig = Field(default_factory=lambda: NetworkConfig(), description="Interfaces and NCCL.")
    temp_dir: str = Field("/tmp", description="Folder of each node for Ray's sockets and logs; at most 24 characters, as sockets need.")
    ready_timeout_s: float = Field(300, gt=0, description="How long to wait until a node is ready.")
    max_restarts: int = Field(3, ge=0, description="How often a job that failed through no fault of its configuration is started again.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name: give at most 31 of a-z, 0-9 and -")
        return name

    @field_validator("temp_dir")
    @classmethod
    def _short(cls, folder: str) -> str:
        if not folder.startswith("/") or len(folder) > LONGEST_TEMP_DIR:
            raise ValueError(f"{folder!r} is not an absolute path of at most {LONGEST_TEMP_DIR} characters (Ray makes sockets below it)")
        return folder

    @field_validator("env")
    @classmethod
    def _no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        secret = next((key for key in env if _SECRET.search(key)), None)
        if secret is not None:
            raise ValueError(f"{secret} looks like a secret, and env is written into logs and scripts; put it into the file of env_file")
        return env

    def environment(self) -> dict[str, str]:
        """Return the variables every process gets: the network's, then `env`."""
        return self.network.environment() | self.env


class LocalCluster(_Cluster):
    """This machine."""

    kind: Literal["local"]
    num_cpus: int | None = Field(None, gt=0, description="Processors to offer; None: all.")
    num_gpus: int | None = Field(None, ge=0, description="GPUs to offer; None: all.")


class RayCluster(_Cluster):
    """A Ray cluster that somebody else keeps, also a KubeRay one."""

    kind: Literal["ray"]
    address: str = Field(description="Address of its head for drivers, host:port (Ray's GCS, often port 6379).")
    dashboard: str = Field("127.0.0.1:8265", description="host:port of its dashboard, which takes jobs.")
    token_file: str | None = Field(None, description="File with its token (RAY_AUTH_TOKEN_PATH), beside this file. None: it wants none.")

    @field_validator("address", "dashboard")
    @classmethod
    def _host_and_port(cls, given: str) -> str:
        found = _HOST_AND_PORT.fullmatch(given)
        if found is None or not 0 < int(found[2]) < 65536:
            raise ValueError(f"{given!r} is not host:port, for example 10.0.0.1:6379")
        return given

    @model_validator(mode="after")
    def _theirs(self) -> RayCluster:
        fields = ("env", "env_file", "network", "temp_dir", "ready_timeout_s")
        given = [name for name in fields if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)]
        if given:
            raise ValueError(f"leave out {', '.join(given)}: of a Ray that is there, whoever started it decides that")
        return self


class HostConfig(StrictModel):
    """A host that ssh reaches."""

    host: str = Field(description="Name as ssh knows it; user, port, keys and ProxyJump come from your ssh configuration.", min_length=1)
    address: str | None = Field(None, description="Its address for the other nodes. None: of network.interface, or of its default route.")
    gpus: int | None = Field(None, ge=0, description="GPUs to offer (`slots` in a hostfile); None: those it has.")
    cpus: int | None = Field(None, gt=0, description="Processors to offer; None: all.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels for placement.")

    @field_validator("host")
    @classmethod
    def _no_option(cls, host: str) -> str:
        if host.startswith("-") or any(character.isspace() for character in host):
            raise ValueError(f"{host!r} is not a host name")
        return host


class SshCluster(_Cluster):
    """Hosts reached by ssh; the first is the head."""

    kind: Literal["ssh"]
    hosts: list[HostConfig] = Field(default_factory=list, description="Names, or mappings with host, address, gpus, cpus, labels.")
    hostfile: str | None = Field(None, description="Or a hostfile as DeepSpeed and MPI read it (`host slots=8`), beside this file.")
    ssh_options: list[str] = Field(
        default_factory=list, description="Further arguments of ssh, for example [-F, ssh_config]; files beside it."
    )
    tree: Literal["shared", "copy"] = Field("shared", description="Is the working tree on a file system that all see, or copied (rsync)?")
    environment_copy: bool = Field(False, description="Copy the Python environment too, to the same path on every host.")

    @field_validator("hosts", mode="before")
    @classmethod
    def _names(cls, hosts: Any) -> Any:
        return [{"host": host} if isinstance(host, str) else host for host in hosts] if isinstance(hosts, list) else hosts

    @model_validator(mode="after")
    def _one_source(self) -> SshCluster:
        if bool(self.hosts) == bool(self.hostfile):
            raise ValueError("give either hosts or hostfile")
        names = [host.host for host in self.hosts]
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise ValueError(f"hosts names {double!r} more than once")
        python = Path(self.python)
        if self.environment_copy and not (python.is_absolute() and python.parent.name == "bin" and len(python.parents) > 2):
            raise ValueError(f"environment_copy copies the folder PREFIX of python: PREFIX/bin/python; {self.python!r} is not such a path")
        return self


class SlurmCluster(_Cluster):
    """Nodes that Slurm gives. The state folder (W2SR_HOME) and the run folders must be on a file system that all nodes see."""

    kind: Literal["slurm"]
    nodes: int = Field(1, gt=0, description="Number of nodes of a job.")
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs of each node; asked for as --gpus-per-node unless `gres` is given.")
    cpus_per_node: int | None = Field(None, gt=0, description="Processors of each node (--cpus-per-task of the one task a node has).")
    mem: str | None = Field(None, description="Memory of each node as Slurm writes it, for example 500G; 0: all.")
    time_limit: str | None = Field(None, description="As Slurm writes it: minutes, H:M:S or D-H:M:S. Work is committed before it ends.")
    partition: str | None = Field(None, description="--partition")
    account: str | None = Field(None, description="--account")
    qos: str | None = Field(None, description="--qos")
    gres: str | None = Field(None, description="--gres, for example gpu:h100:8")
    constraint: str | None = Field(None, description="--constraint")
    reservation: str | None = Field(None, description="--reservation")
    sbatch: list[str] = Field(default_factory=list, description="Further options of sbatch, for example [--exclusive, --mail-type=END].")
    setup: list[str] = Field(default_factory=list, description="Shell lines before anything starts, for example [module load cuda].")
    requeue: bool = Field(True, description="Let Slurm queue the job again after pre-emption, a lost head or the end of its time.")
    grace_s: int = Field(180, ge=10, description="How long before the end of the time limit work stops and commits.")

    @field_validator("time_limit", "mem", mode="before")
    @classmethod
    def _quoted(cls, given: Any) -> Any:
        if isinstance(given, int):
            raise ValueError('put it in quotes, as "8:00:00" or "500G": without them YAML makes a number of it')
        return given


class ClusterFile(RootModel[Annotated[LocalCluster | RayCluster | SshCluster | SlurmCluster, Field(discriminator="kind")]]):
    """One of the four kinds."""


AnyCluster = LocalCluster | RayCluster | SshCluster | SlurmCluster


def load_cluster_file(path: Path) -> AnyCluster:
    """Read and check a CLUSTER.yaml. Raises UserError that names file, key, value and what is allowed."""
    values = {"name": path.stem.lower().replace("_", "-"), **read_values(path, None, "cluster.yaml", "docs/clusters.md")}
    file = check_values(ClusterFile, values, path).root
    # What is known by name later must not depend on where the command is typed, nor on a hostfile that has changed since.
    folder = path.absolute().parent
    if isinstance(file, RayCluster) and file.token_file:
        return file.model_copy(update={"token_file": str(folder / os.path.expanduser(file.token_file))})
    if not isinstance(file, SshCluster):
        return file
    beside = [
        str(folder / os.path.expanduser(value)) if before in ("-F", "-i") else value for before, value in pairwise(["", *file.ssh_options])
    ]
    hosts = file.hosts if file.hostfile is None else read_hostfile(path.parent / file.hostfile)
    return file.model_copy(update={"ssh_options": beside, "hosts": hosts, "hostfile": None})


def read_hostfile(path: Path) -> list[HostConfig]:
    """Return the hosts of a hostfile: `name slots=8` a line (slots are GPUs), # begins a comment. Raises UserError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read hostfile {path}: {error.strerror}; it is looked for beside the CLUSTER.yaml") from error
    except UnicodeDecodeError as error:
        raise UserError(f"hostfile {path} is not text in UTF-8 (byte {error.start}); save it as such") from error
    hosts: dict[str, HostConfig] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = [re.fullmatch(r"slots=([0-9]+)", word) for word in words[1:]]
        if len(slots) > 1 or not all(slots) or words[0].startswith("-"):
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not `host slots=NUMBER`, for example `node1 slots=8`")
        if words[0] in hosts:
            raise UserError(f"{path}, line {number}: host {words[0]!r} is there twice; give each host once, with all its slots")
        hosts[words[0]] = HostConfig(host=words[0], gpus=int(slots[0][1]) if slots and slots[0] else None)
    if not hosts:
        raise UserError(f"hostfile {path} names no host; give `host slots=NUMBER`, one a line")
    return list(hosts.values())
