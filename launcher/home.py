"""What this user's clusters and jobs are: one private folder, `~/.w2sr` or W2SR_HOME.

```
~/.w2sr/clusters/<name>/  cluster.json   the resolved CLUSTER.yaml
                          token          the cluster's Ray token, mode 0600
                          state.json     what is up; absent when the cluster is down
~/.w2sr/jobs/<id>.json    where a job's folder is
<run_dir>/jobs/<id>/      job.json  config.yaml  state.json  supervisor.log  cancel
```

Everything is written aside and renamed; readers may look at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.ray_settings import LOOPBACK_SETTINGS
from launcher.cluster_file import NAME, AnyCluster, ClusterFile, load_cluster_file
from w2sr.errors import UserError
from w2sr.schema import nearest
from w2sr.tables import write_text


def home() -> Path:
    """Return the private folder of this user's clusters and jobs; made when absent, mode 0700."""
    folder = Path(os.environ.get("W2SR_HOME") or Path.home() / ".w2sr").absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the state folder {folder} ({error.strerror}); set W2SR_HOME to a folder you may write to") from error
    return folder


@dataclass(frozen=True)
class NodeState:
    """A node that was brought up: how the substrate knows it, its address, its keeper's process and private folder there."""

    host: str
    address: str
    pid: int
    folder: str


@dataclass(frozen=True)
class ClusterState:
    """What is up. `address` is Ray's for drivers, `dashboard` takes jobs, both host:port; `slurm_job` where Slurm gave the nodes."""

    address: str
    dashboard: str
    nodes: tuple[NodeState, ...]
    started_at: float
    slurm_job: str | None = None
    # Seconds by part, for `cluster up`'s last line and benchmarks/cluster_up.py.
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenCluster:
    """A cluster this user named: its file, its private folder, and what is up (None: down)."""

    file: AnyCluster
    folder: Path
    state: ClusterState | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.file.name

    @property
    def address(self) -> str:
        """Ray's address, host:port. Raises UserError when the cluster is down."""
        return self.up().address

    def up(self) -> ClusterState:
        """Return what is up. Raises UserError when nothing is."""
        if self.state is None:
            raise UserError(f"cluster {self.name!r} is not up; bring it up with `w2sr cluster up {self.name}`")
        return self.state

    @property
    def token_path(self) -> Path | None:
        """File with Ray's token; None for a foreign cluster that wants none."""
        if self.file.kind == "ray":
            return Path(self.file.token_file) if self.file.token_file else None
        return self.folder / "token"

    def environment(self) -> dict[str, str]:
        """Return the variables by which a process on this machine is let in. The token itself is in none of them."""
        loopback = LOOPBACK_SETTINGS if self.file.kind == "local" else {}
        if self.token_path is None:
            return loopback
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path), **loopback}

    def token(self) -> str:
        """Return the token, made at the first call. Raises UserError, which never shows it, when its file is unreadable or holds none."""
        path = self.token_path
        assert path is not None
        if self.file.kind != "ray" and not path.exists():
            with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        try:
            token = path.read_bytes().strip()
        except OSError as error:
            raise UserError(f"cluster {self.name!r}: cannot read its token in {path} ({error.strerror})") from error
        if not token or not all(33 <= byte <= 126 for byte in token):
            raise UserError(
                f"cluster {self.name!r}: {path} holds no token: give one line of letters, digits and signs, without blanks, as the "
                "cluster's owner has it"
            )
        return token.decode("ascii")

    def save(self, state: ClusterState | None) -> OpenCluster:
        """Store what is up now, and by which file (None: nothing, and the token goes too), and return the cluster with it."""
        if state is None:
            (self.folder / "state.json").unlink(missing_ok=True)
            (self.folder / "token").unlink(missing_ok=True)
        else:
            # Another file of that name may have been looked at while this one came up.
            write_text(self.folder / "cluster.json", self.file.model_dump_json(indent=1))
            write_text(self.folder / "state.json", json.dumps(dataclasses.asdict(state), indent=1))
        return dataclasses.replace(self, state=state)


def open_cluster(name_or_file: str) -> OpenCluster:
    """Return a cluster by the name it was brought up with, or by its CLUSTER.yaml. Raises UserError when there is neither."""
    if name_or_file.endswith((".yaml", ".yml")) or os.sep in name_or_file:
        file = load_cluster_file(Path(name_or_file))
        folder = home() / "clusters" / file.name
        state = _state(folder)
        stored = _file(folder)
        if state is not None and stored is not None and stored != file:
            changed = sorted(key for key, value in file.model_dump().items() if stored.model_dump().get(key) != value)
            raise UserError(
                f"cluster {file.name!r} is up with another file (changed: {', '.join(changed)}); first `w2sr cluster down {file.name}`, "
                "or give the new one another name"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(folder / "cluster.json", file.model_dump_json(indent=1))
        return OpenCluster(file, folder, state)
    known = known_clusters()
    if name_or_file not in known:
        raise UserError(
            f"no cluster is called {name_or_file!r}: {nearest(name_or_file, known)}known: {', '.join(known) or 'none yet'}; "
            "or give a CLUSTER.yaml (docs/clusters.md)"
        )
    folder = home() / "clusters" / name_or_file
    found = _file(folder)
    assert found is not None
    return OpenCluster(found, folder, _state(folder))


def known_clusters() -> list[str]:
    """Return the names of the clusters this user has had."""
    return sorted(path.parent.name for path in (home() / "clusters").glob("*/cluster.json"))


def _file(folder: Path) -> AnyCluster | None:
    path = folder / "cluster.json"
    if not path.exists():
        return None
    with _written_by_this_version(path):
        return ClusterFile.model_validate_json(path.read_text(encoding="utf-8")).root


def _state(folder: Path) -> ClusterState | None:
    path = folder / "state.json"
    if not path.exists():
        return None
    with _written_by_this_version(path):
        return TypeAdapter(ClusterState).validate_json(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _written_by_this_version(path: Path) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        raise UserError(
            f"{path} is not as this version of w2sr writes it ({where}: {problem['msg']}); take the cluster down with the version that "
            f"brought it up, then remove {path.parent}"
        ) from error


@dataclass(frozen=True)
class Job:
    """One submission of a configuration to a cluster. `backend` runs it (ray: the Jobs API; slurm: sbatch) as `backend_id`.

    `stages`: those to run; empty: all. `cwd`: the folder it was submitted from, to which relative paths in its configuration refer.
    """

    id: str
    cluster: str
    backend: str
    backend_id: str
    run_dir: str
    stages: tuple[str, ...]
    submitted_at: float
    max_restarts: int
    cwd: str = "."

    @property
    def folder(self) -> Path:
        """The job's folder, in the run's."""
        return Path(self.run_dir) / "jobs" / self.id

    def save(self) -> None:
        """Store the job in its folder and make it findable by its id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "job.json", json.dumps(dataclasses.asdict(self), indent=1))
        index = home() / "jobs"
        index.mkdir(mode=0o700, exist_ok=True)
        write_text(index / f"{self.id}.json", json.dumps({"folder": str(self.folder)}))


def new_job_id(run_dir: Path) -> str:
    """Return an id that says which run and when, and that no other job has."""
    name = "".join(character if NAME.fullmatch(character) else "-" for character in run_dir.name.lower()).strip("-")[:20] or "run"
    return f"{name}-{time.strftime('%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def load_job(folder: Path) -> Job:
    """Return the job in `folder`."""
    values: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return Job(**values | {"stages": tuple(values["stages"])})


def find_job(job_id: str) -> Job:
    """Return a job by its id. Raises UserError that names the known ones."""
    jobs = {job.id: job for job in known_jobs()}
    if job_id not in jobs:
        latest = ", ".join(job.id for job in known_jobs()[-5:])
        raise UserError(f"no job is called {job_id!r}: {nearest(job_id, list(jobs))}latest: {latest or 'none yet'}; see `w2sr jobs`")
    return jobs[job_id]


def known_jobs() -> list[Job]:
    """Return this user's jobs whose folders still exist, oldest first."""
    found = []
    for path in (home() / "jobs").glob("*.json"):
        folder = Path(json.loads(path.read_text(encoding="utf-8"))["folder"])
        if (folder / "job.json").exists():
            found.append(load_job(folder))
    return sorted(found, key=lambda job: job.submitted_at)


def forget_job(job: Job) -> None:
    """Take a job that was not submitted after all out of the index."""
    (home() / "jobs" / f"{job.id}.json").unlink(missing_ok=True)
