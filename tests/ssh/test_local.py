"""Clusters of the kinds local and ray, without any host but this machine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Person:
    """Somebody who types commands in `folder`."""

    folder: Path

    def w2sr(self, *arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *map(str, arguments)],
            env=os.environ | {"W2SR_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def write(self, name: str, **values: object) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        return path


@pytest.fixture
def person() -> Iterator[Person]:
    with tempfile.TemporaryDirectory(prefix="w2l-", dir="/tmp") as folder:
        yield Person(Path(folder))


def test_this_machine_comes_up_on_loopback_alone_and_goes_down(person: Person) -> None:
    file = person.write("here", kind="local", num_cpus=3, num_gpus=2, temp_dir=str(person.folder))
    said = person.w2sr("cluster", "up", file)
    try:
        assert "1 node: " in said
        state = json.loads((person.folder / "home/clusters/here/state.json").read_text())
        assert state["address"].startswith("127.0.0.1:")
        assert state["dashboard"].startswith("127.0.0.1:")
        assert "here is up already" in person.w2sr("cluster", "up", "here")
        assert "1 of 1 nodes up" in person.w2sr("cluster", "status", "here")

        token = person.folder / "home/clusters/here/token"
        theirs = person.write("theirs", kind="ray", address=state["address"], dashboard=state["dashboard"], token_file=str(token))
        assert "theirs is up after" in person.w2sr("cluster", "up", theirs)
        assert "1 of 1 nodes up" in person.w2sr("cluster", "status", "theirs")
        stranger = person.write("stranger", kind="ray", address=state["address"], dashboard=state["dashboard"])
        assert "refused this client (HTTP 401); set token_file to its token" in person.w2sr("cluster", "up", stranger, code=2)
        assert "goes on: w2sr did not start it" in person.w2sr("cluster", "down", "theirs")
        assert token.exists()
        assert "1 of 1 nodes up" in person.w2sr("cluster", "status", "here")
    finally:
        person.w2sr("cluster", "down", "here")
    assert not token.exists()
    assert not list(person.folder.glob("w2sr-*"))
    assert "cannot be asked" not in person.w2sr("cluster", "list")


def test_a_foreign_cluster_that_does_not_answer_is_refused(person: Person) -> None:
    gone = person.write("gone", kind="ray", address="127.0.0.1:9", dashboard="127.0.0.1:9")
    assert "no Ray dashboard answers at 127.0.0.1:9" in person.w2sr("cluster", "up", gone, code=2)
    tokenless = person.write("tokenless", kind="ray", address="127.0.0.1:9", dashboard="127.0.0.1:9", token_file="none")
    assert f"token_file {person.folder}/none does not exist; ask the cluster's owner" in person.w2sr("cluster", "up", tokenless, code=2)


def test_ray_that_does_not_start_says_why_and_leaves_nothing(person: Person) -> None:
    file = person.write("wrong", kind="local", temp_dir=str(person.folder), env_file=str(person.folder / "none"))
    said = person.w2sr("cluster", "up", file, code=2)
    assert "Ray did not start on this machine: cannot read env_file" in said
    assert not list(person.folder.glob("w2sr-*"))
    assert not (person.folder / "home/clusters/wrong/token").exists()
