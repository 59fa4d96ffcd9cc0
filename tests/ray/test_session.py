"""The session: token, clean-up, Ctrl-C, processors."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import session
from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from cluster.session import machine_cpus, machine_gpus, ray_session, require

REPO = Path(__file__).resolve().parents[2]

INTERRUPTED = """
import faulthandler, sys, time
faulthandler.dump_traceback_later(90, exit=True)  # should it hang, this says where
from cluster.config import ClusterSpec
from cluster.pool import Pool
from cluster.session import ray_session
from cluster.work import Service
from tests.pool_fakes import FakeWorker, ListSource

try:
    with ray_session(ClusterSpec(num_cpus=2)), Pool() as pool:
        service = Service("a", FakeWorker, "a", min_replicas=2, max_replicas=2)
        list(pool.run([service], ListSource(a=[("sleep", 0.1)] * 2)))
        import ray
        print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
        list(pool.run([service], ListSource(a=[("sleep", 100)] * 2)))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

CLIENTS = """
import sys
from cluster.config import ClusterSpec
from cluster.session import ray_session
from cluster.errors import ClusterError

for address in sys.argv[1:]:
    try:
        with ray_session(ClusterSpec(address=address)):
            import ray
            print("connected,", ray.cluster_resources()["CPU"], "CPUs")
    except ClusterError as error:
        print("ClusterError:", error)
"""


def run_clients(addresses: list[str], **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    # One try instead of 20 a second apart; and the address is taken as it is, on loopback.
    environment |= {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS, *addresses], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


def processes_with(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it ended meanwhile
            if text in command:
                found.append(command)
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_a_client_without_the_token_is_refused_and_one_with_it_is_not() -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    without = run_clients([address, "127.0.0.1:9", "nowhere"], RAY_AUTH_MODE="disabled")
    assert without[0].startswith(f"ClusterError: the Ray cluster at {address} refused this client: set RAY_AUTH_MODE=token")
    for line, dead in zip(without[1:], ("127.0.0.1:9", "nowhere"), strict=True):
        assert line.startswith(f"ClusterError: cannot connect to the Ray cluster at {dead} (")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    assert run_clients([address], **token) == ["connected, 2.0 CPUs"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_private_ray_listens_on_loopback_only_for_its_control_plane() -> None:
    import ray

    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")


@pytest.mark.usefixtures("ray_cluster")
def test_the_token_is_readable_by_its_owner_only() -> None:
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64
    assert not processes_with(path.read_text())


def test_ctrl_c_ends_the_session_without_a_trace_of_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, like a job in a terminal
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip()).parents[1]
        assert folder.name.startswith("w2sr-ray-")
        assert processes_with(str(folder))
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "interrupted\n"), err
    assert "Traceback" not in err
    assert not folder.exists()
    assert not processes_with(str(folder))


@pytest.mark.usefixtures("ray_cluster")
def test_sigterm_stays_with_whom_it_was() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "Ray takes it while it starts; the session gives it back"


def test_more_processors_than_the_machine_has_are_refused_before_ray_starts() -> None:
    with (
        pytest.raises(ClusterError, match=rf"cluster.num_cpus=4096, but this machine has {machine_cpus()}"),
        ray_session(ClusterSpec(None, 4096)),
    ):
        pass
    with pytest.raises(ClusterError, match=r"cluster\.num_gpus=99"), ray_session(ClusterSpec(num_gpus=99)):
        pass


def test_a_stage_that_needs_more_than_there_is_is_told_so() -> None:
    spec = ClusterSpec(num_cpus=2, num_gpus=0)
    require("two ranks", 2, 0, spec)
    with pytest.raises(ClusterError, match=r"train.num_ranks=4 with 1 CPU each needs 4 CPUs; this machine has 2 CPUs \(cluster.num_cpus\)"):
        require("train.num_ranks=4 with 1 CPU each", 4, 0, spec)
    with pytest.raises(ClusterError, match=r"one rank needs 1 GPU; this machine has 0 GPUs"):
        require("one rank", 1, 1, spec)


def test_gpus_are_counted_by_nvidia_smi_and_what_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B (UUID: y)'\n")
    fake.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine_gpus() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_gpus() == 0


def test_a_long_temporary_folder_is_avoided_for_the_sake_of_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(session.tempfile, "tempdir", str(long))
    with contextlib.ExitStack() as cleanup:
        folder = session._private_folder(cleanup)
        assert len(str(folder)) <= session.LONGEST_TEMP_DIR
    assert not folder.exists()


def test_folders_of_killed_sessions_are_swept_and_live_ones_stay(tmp_path: Path) -> None:
    import contextlib
    import fcntl

    for name in ("w2sr-ray-dead", "w2sr-ray-live", "w2sr-ray-young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text("x")
        if name != "w2sr-ray-young":
            os.utime(tmp_path / name / "token", (1, 1))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(tmp_path / "w2sr-ray-live" / "token"))
        fcntl.flock(file, fcntl.LOCK_EX)
        session._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w2sr-ray-live", "w2sr-ray-young"]
