"""The commands of docs/clusters.md, each run as it stands there: in this order, in a person's folder, with `w2sr` on the PATH.

Most stages of the run are done already: jobs that do all of them are in test_jobs_over_ssh.py and in tests/jobs.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ssh.conftest import ON_BOTH
from tests.ssh.hosts import ROOT, Hosts
from w2sr.config import dump_config, load_config

DOCUMENT = (ROOT / "docs/clusters.md").read_text()


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(title: str) -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", section(title), re.S) for line in block.splitlines() if line]


def cluster_file(title: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the values of a section's CLUSTER.yaml."""
    (block,) = re.findall(r"```yaml\n(.*?)```", section(title), re.S)
    return block.splitlines()[0].removeprefix("# "), yaml.safe_load(block)


@pytest.fixture
def person(two_hosts: Hosts, calm_run: Path) -> Iterator[Hosts]:
    """Somebody's folder with configs/quickstart.yaml, small, the stages of its run, and a `w2sr` on the PATH."""
    (two_hosts.folder / "configs").mkdir(exist_ok=True)
    small = load_config(ROOT / "configs/quickstart.yaml", ON_BOTH)
    (two_hosts.folder / "configs/quickstart.yaml").write_text(dump_config(small))
    for stage in ("prompts", "generate", "verify", "curate", "train", "evaluate"):
        shutil.copytree(calm_run / stage, two_hosts.folder / "runs/quickstart" / stage)
    shim = two_hosts.folder / "bin/w2sr"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher "$@"\n')
    shim.chmod(0o755)
    yield two_hosts
    subprocess.run(["rm", "-rf", two_hosts.folder / "runs"], check=True)


def type_in(hosts: Hosts, command: str, on: str | None = None) -> str:
    """Type a line, on a host or on the login node, expect it to succeed, and return what it printed."""
    there = ["ip", "netns", "exec", hosts.namespaces[on]] if on else []
    environment = hosts.environment
    environment["PATH"] = f"{hosts.folder}/bin:{environment['PATH']}"
    done = subprocess.run(
        [*there, "bash", "-c", command], env=environment, cwd=hosts.folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def write(hosts: Hosts, title: str, **more: Any) -> None:
    name, values = cluster_file(title)
    (hosts.folder / name).write_text(yaml.safe_dump(values | more))


def surroundings(hosts: Hosts) -> dict[str, Any]:
    return {"python": sys.executable, "temp_dir": str(hosts.folder), "env": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}


def test_the_walk_through_of_this_machine(person: Hosts) -> None:
    title = "This machine"
    write(person, title, **surroundings(person))
    said = {command: type_in(person, command) for command in commands(title)}
    assert (person.folder / "runs/quickstart/report.html").exists(), said
    assert "here is down" in said["w2sr cluster down here"]


def test_the_walk_through_over_ssh(person: Hosts) -> None:
    """Typed on the login node, which reaches the dashboard through a tunnel. `logs -f` would follow to the end; it is left before,
    so that there is something to cancel: models are still to be evaluated."""
    shutil.rmtree(person.folder / "runs/quickstart/evaluate")
    title = "Hosts over ssh"
    write(person, title, ssh_options=["-F", "ssh_config"], **surroundings(person))
    said = {}
    for command in commands(title):
        following = command.startswith("w2sr logs") and command.endswith("-f")
        said[command] = type_in(person, f"timeout 3 {command} || [ $? = 124 ]" if following else command)
    assert "2 of 2 nodes up" in said["w2sr cluster status pair"]
    assert (person.folder / "runs/quickstart/report.html").exists(), said
    assert "pair (ssh): up" in said["w2sr cluster list"]
    assert "pair is down" in said["w2sr cluster down pair"]
    assert person.leftovers() == []


def test_the_walk_through_of_a_foreign_cluster(person: Hosts) -> None:
    """The foreign cluster is one of ours, brought up under another state folder; typed on its head, as nothing forwards its ports here."""
    owner = person.write_cluster("owned", hosts=["a"])
    person.w2sr("cluster", "up", owner)
    try:
        state = json.loads((person.folder / "home/clusters/owned/state.json").read_text())
        (person.folder / "their-token").write_text((person.folder / "home/clusters/owned/token").read_text())
        title = "A Ray cluster that is there"
        more = {"address": state["address"], "dashboard": state["dashboard"]}
        write(person, title, **more, python=sys.executable)
        said = {command: type_in(person, command, on="a") for command in commands(title)}
        assert "1 of 1 nodes up" in said["w2sr cluster status theirs"]
        assert (person.folder / "runs/quickstart/report.html").exists(), said
        assert "1 of 1 nodes up" in person.w2sr("cluster", "status", "owned")
    finally:
        person.w2sr("cluster", "down", "owned")


def test_every_command_of_the_document_is_in_a_section_that_is_tested() -> None:
    tested = ("This machine", "Hosts over ssh", "A Ray cluster that is there", "Slurm")
    titles = re.findall(r"^## (.*)$", DOCUMENT, re.M)
    assert [title for title in titles if title not in tested and commands(title)] == []


def test_the_document_names_files_that_exist() -> None:
    for name in re.findall(r"\((\w+\.md)\)", DOCUMENT):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT):
        assert Path(ROOT / name).exists(), name
