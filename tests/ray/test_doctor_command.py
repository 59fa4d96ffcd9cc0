"""The commands of docs/doctor.md, each run on a cluster that wants a token (of one node), or on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_doctor_docs import PAGE, ROOT, bash_lines

COMMANDS = bash_lines(PAGE)


def run(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # On loopback Ray takes an address as it is given only with this.
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "W2SR_HOME": str(folder / "home"), **variables}
    command = [sys.executable, "-m", "launcher", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path


def mycluster(folder: Path, address: str) -> None:
    """What `w2sr cluster up` leaves of a cluster on this machine."""
    (folder / "mycluster.yaml").write_text("kind: local\n")
    code = (
        "from launcher.home import *; cluster = open_cluster('mycluster.yaml');"
        f"cluster.save(ClusterState({address!r}, '127.0.0.1:8265', (), 0.0)); import os, shutil;"
        "shutil.copy(os.environ['RAY_AUTH_TOKEN_PATH'], cluster.token_path)"
    )
    environment = os.environ | {"W2SR_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=60)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_page_works(words: list[str], here: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    stands_for = {"HOST:PORT": address, "shared": str(here / "shared")}
    arguments = [stands_for.get(word, word) for word in words[1:]]
    variables: dict[str, str] = {}
    if "--cluster" in arguments:
        mycluster(here, address)
    if "--address" in arguments:
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    redirected = ">" in arguments
    done = run(arguments[: arguments.index(">")] if redirected else arguments, here, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "doctor: facts: 1 node" in done.stderr
    if redirected:
        found = json.loads(done.stdout)
        assert found["exit_code"] == 0
        assert {finding["area"] for finding in found["findings"]} >= {"nodes", "versions", "filesystem", "clock", "limits"}
        assert len(found["nodes"]) == 1
    else:
        assert done.stdout.splitlines()[0].split() == ["ok", "nodes", "answered", "1", "of", "1"]
        assert all(len(line) <= 80 for line in done.stdout.splitlines())
        assert ("files      student" in done.stdout) == ("--config" in arguments)
        assert ("filesystem shared" in done.stdout) == (bool({"--config", "--shared"} & set(arguments)))
    assert list((here / "shared").iterdir()) == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_check_is_the_exit_code_and_says_what_to_do(here: Path) -> None:
    done = run(["doctor", "--shared", str(here / "nowhere"), "--no-bandwidth"], here)
    assert done.returncode == 14
    assert "FAIL filesystem usable" in done.stdout
    assert "-> mount the shared file system" in done.stdout


def test_a_cluster_that_is_unknown_or_gone_is_a_mistake_in_the_call(here: Path) -> None:
    unknown = run(["doctor", "--cluster", "nobody"], here)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no cluster is called 'nobody'" in unknown.stderr
    gone = run(["doctor", "--address", "127.0.0.1:9"], here)
    assert gone.returncode == 2
    assert "cannot connect to the Ray cluster at 127.0.0.1:9" in gone.stderr
    for words in (["--timeout", "0"], ["--timeout", "soon"], ["--cluster", "a", "--address", "b:1"]):
        assert run(["doctor", *words], here).returncode == 2
