"""`w2sr doctor --cluster NAME` on a cluster that `w2sr cluster up` made: on its own machine, and through its dashboard alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster.errors import ClusterError
from cluster.ray_jobs import RayJobs
from launcher import doctor_job
from launcher.doctor_job import examine_from_head
from launcher.home import open_cluster
from tests.jobs.conftest import ROOT, Lab, lab_of, wait_for


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of(num_cpus=1) as lab:
        (lab.folder / "shared").mkdir()
        yield lab


@pytest.fixture(scope="module")
def from_outside(lab: Lab) -> Lab:
    """The same cluster as `theirs`, of kind ray, whose dashboard is forwarded to this machine and whose Ray is not."""
    state = json.loads((lab.home / "clusters" / "here" / "state.json").read_text())
    file = {"kind": "ray", "address": "127.0.0.1:9", "dashboard": state["dashboard"], "token_file": str(lab.home / "clusters/here/token")}
    (lab.folder / "theirs.yaml").write_text(json.dumps(file))
    lab.w2sr("cluster", "up", "theirs.yaml")
    return lab


def test_a_node_of_the_cluster_asks_the_others_itself(lab: Lab) -> None:
    printed = lab.w2sr("doctor", "--cluster", "here", "--shared", "shared", "--config", ROOT / "configs" / "quickstart.yaml")
    assert "doctor: facts: 1 node" in printed
    assert "files      student" in printed
    assert "0 failed" in printed.splitlines()[-1]
    assert list((lab.folder / "shared").iterdir()) == []


def test_from_elsewhere_it_is_a_job_on_the_head(from_outside: Lab) -> None:
    printed = from_outside.w2sr("doctor", "--cluster", "theirs", "--shared", "shared", "--json")
    found = json.loads(printed[printed.index("{\n") :])
    assert found["exit_code"] == 0
    assert {row["area"] for row in found["findings"]} >= {"nodes", "versions", "filesystem", "clock", "limits"}
    printed = from_outside.w2sr("doctor", "--cluster", "theirs", "--shared", "nowhere", "--no-bandwidth", code=14)
    assert "FAIL filesystem usable" in printed
    assert from_outside.token not in printed


def test_what_the_head_refuses_is_told_in_its_words(from_outside: Lab) -> None:
    printed = from_outside.w2sr("doctor", "--cluster", "theirs", "--config", "none.yaml", code=2)
    assert "the doctor on the head gave no result; it said: " in printed
    assert "cannot read configuration" in printed


def test_a_job_that_takes_too_long_is_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SR_HOME", str(lab.home))
    cluster, numbers = open_cluster("here"), []
    submit = RayJobs.submit
    monkeypatch.setattr(RayJobs, "submit", lambda *arguments: numbers.append(submit(*arguments)) or numbers[0])
    with pytest.raises(ClusterError, match=r"the doctor on the head is still (pending|running) after 0 s"):
        examine_from_head(cluster, [], 0.0, lambda _: None)
    jobs = RayJobs(f"http://{cluster.up().dashboard}", cluster.token())
    wait_for(lambda: jobs.state(numbers[0]) == "ended", timeout_s=60)


def test_output_that_cannot_be_fetched_is_an_error_that_says_so() -> None:
    with pytest.raises(ClusterError, match="could not be fetched"):
        doctor_job._output("http://127.0.0.1:9", None, "x")


@pytest.mark.parametrize("output", ["", "Killed", "{\nnot json\n}", "noise\n}\n{"])
def test_output_without_a_result_is_an_error(output: str) -> None:
    with pytest.raises(ClusterError, match="gave no result; it said: "):
        doctor_job._parsed(output)


def test_a_result_is_found_between_other_lines() -> None:
    assert doctor_job._parsed('doctor: facts\n{\n "exit_code": 0\n}\nwarning: bye') == {"exit_code": 0}
