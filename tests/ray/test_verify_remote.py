"""Grading on the processors of a real local Ray: the same verdicts as in local processes."""

from pathlib import Path

import pytest

from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from tests.unit.test_verify_stage import TEACHERS, generate, run_in, verdicts_of
from w2sr.artifacts import Manifest
from w2sr.errors import UserError
from w2sr.stages import verify


def test_replicas_give_the_verdicts_that_local_processes_give(tmp_path: Path, ray_cluster: ClusterSpec) -> None:
    assert ray_cluster.address is None
    local, remote = generate(run_in(tmp_path / "local")), generate(run_in(tmp_path / "remote", where="ray", workers=1))
    verify.run(local)
    verify.run(remote)
    for teacher in TEACHERS:
        assert verdicts_of(local, teacher) == verdicts_of(remote, teacher)
        assert Manifest.load(local.stage("verify", teacher)).digest != ""
        assert Manifest.load(local.stage("verify", teacher)).files == Manifest.load(remote.stage("verify", teacher)).files


def test_a_users_mistake_ends_the_run_with_its_message(tmp_path: Path, ray_cluster: ClusterSpec) -> None:
    assert ray_cluster.num_cpus == 2
    run = generate(run_in(tmp_path, grader="reasoning_gym", where="ray", workers=1))
    with pytest.raises((UserError, ClusterError), match=r"use verify\.grader"):
        verify.run(run)
