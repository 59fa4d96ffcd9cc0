"""The pool on a real Ray: processes that die, nodes that join and die, other environments, GPUs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from cluster.pool import Pool
from cluster.work import Outcome, Service
from tests.pool_fakes import FakeWorker, ListSource, keys
from w2sr.errors import UserError

# Half a processor each: two pools' actors fit on two processors while the first ones are still going away.
A = Service("a", FakeWorker, spec="A", min_replicas=2, max_replicas=2, cpus=0.5, fatal=(UserError,))


@pytest.fixture(scope="module")
def pool(ray_cluster: ClusterSpec) -> Iterator[Pool]:
    """One pool for all tests here, because processes take a second to start."""
    assert ray_cluster.num_cpus == 2
    with Pool() as opened:
        yield opened


def run(pool: Pool, *payloads: tuple[object, ...], service: Service = A) -> list[Outcome]:
    return list(pool.run([service], ListSource(a=payloads)))


def pids_of(outcomes: list[Outcome]) -> set[str]:
    return {outcome.result.split(":")[2] for outcome in outcomes}


def test_the_same_two_processes_do_everything_once_for_one_spec_after_another(pool: Pool) -> None:
    run(pool, *[("sleep", 0.1)] * 10)
    first = run(pool, *[("sleep", 0.05)] * 20)
    second = run(pool, *[("sleep", 0.05)] * 20, service=replace(A, spec="B"))
    assert keys(first) == keys(second) == list(range(20))
    assert pids_of(first) == pids_of(second) == {str(pid) for pid in pool.pids}
    assert len(pool.pids) == 2
    assert {outcome.result.split(":")[0] for outcome in second} == {"B"}
    assert all("@" in outcome.replica for outcome in first)


def test_what_was_in_a_process_killed_from_outside_is_done_by_another(pool: Pool) -> None:
    victim = pool.pids[0]
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    outcomes = run(pool, *[("sleep", 0.05)] * 60, service=replace(A, capacity=3))
    assert keys(outcomes) == list(range(60))
    assert not any(outcome.failure for outcome in outcomes)
    assert pool.status()[0].deaths == 1
    assert victim not in pool.pids


def test_a_process_that_was_killed_while_it_had_nothing_to_do_is_noticed(pool: Pool) -> None:
    run(pool, ("say",))
    for victim in pool.pids:
        os.kill(victim, signal.SIGKILL)
    assert not any(outcome.failure for outcome in run(pool, ("say",), ("say",)))


def test_a_task_that_dies_once_is_done_and_one_that_always_kills_is_quarantined(pool: Pool, tmp_path: Path) -> None:
    payloads: list[tuple[object, ...]] = [("sleep", 0.02)] * 30
    payloads[3], payloads[20] = ("die once", str(tmp_path / "died")), ("die",)
    outcomes = run(pool, *payloads, service=replace(A, capacity=4))
    assert keys(outcomes) == list(range(30))
    (failed,) = [outcome for outcome in outcomes if outcome.failure]
    assert failed.task.key == 20
    assert failed.failure is not None
    assert failed.failure.kind == "quarantined"
    assert "Worker unexpectedly exits" in failed.failure.reason


def test_an_exception_that_a_service_calls_fatal_arrives_as_it_was_raised(pool: Pool) -> None:
    with pytest.raises(UserError) as caught:
        run(pool, ("sleep", 0.1), ("raise", "the template is wrong"), ("sleep", 0.1))
    assert (type(caught.value), str(caught.value)) == (UserError, "the template is wrong")
    assert "pool_fakes.py" in str(caught.value.__cause__)
    with pytest.raises(UserError, match="model 'x' is not there"):
        run(pool, ("say",), service=replace(A, spec="refuse"))
    assert len(run(pool, ("say",))) == 1


def test_an_answer_that_cannot_travel_is_quarantined_with_the_reason(pool: Pool) -> None:
    outcomes = run(pool, ("answer unpicklable",), ("say",))
    assert {outcome.task.key: outcome.failure is None for outcome in outcomes} == {0: False, 1: True}
    assert "lock" in str([outcome.failure for outcome in outcomes if outcome.failure])


def test_processes_that_die_while_they_start_end_the_run(pool: Pool) -> None:
    with pytest.raises(ClusterError, match="3 replicas in a row failed while they started; the last one: Worker unexpectedly exits"):
        run(pool, ("say",), service=replace(A, spec="die", min_replicas=1, max_replicas=1, factory=Another))


def test_a_replica_for_which_there_is_no_room_is_told_with_what_there_is(ray_cluster: ClusterSpec) -> None:
    service = replace(A, min_replicas=1, max_replicas=1, cpus=(ray_cluster.num_cpus or 0) + 1, start_timeout_s=1.0)
    with Pool() as own, pytest.raises(ClusterError, match=r"waits for 1 replica with 3 CPUs; the cluster has 2 CPUs, free: "):
        run(own, ("say",), service=service)


def test_a_service_may_live_in_another_environment(pool: Pool, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nOTHER_ENVIRONMENT=yes exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    service = replace(A, python=str(python), min_replicas=1, max_replicas=1)
    (outcome,) = run(pool, ("environment", "OTHER_ENVIRONMENT", "PYTHONPATH"), service=service)
    assert outcome.result["OTHER_ENVIRONMENT"] == "yes"
    assert str(Path(__file__).resolve().parents[2]) in outcome.result["PYTHONPATH"].split(":")


def test_an_environment_that_does_not_exist_ends_the_run(pool: Pool) -> None:
    service = replace(A, python="/nowhere/python", min_replicas=1, max_replicas=1, start_timeout_s=3.0)
    with pytest.raises(ClusterError, match=r"its process is still starting \(python=/nowhere/python: is it there on every node"):
        run(pool, ("say",), service=service)


def test_a_node_that_joins_is_used_and_its_death_is_held_against_nothing() -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, "-m", "tests.ray.node_comes_and_dies"]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # Ray may print lines of its own before and after.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    seen = json.loads(line)
    assert seen["waited"].startswith("1 replica with 0.5 CPUs, 2 GPUs; the cluster has 1 CPU, free: 1 CPU")
    assert seen["keys"] == list(range(151))
    assert seen["failed"] == [], "max_deaths=1, so one death held against a task would show"
    assert seen["deaths"] >= 1
    assert len(seen["gpus"].split(",")) == 2


class Another(FakeWorker):
    """Of another flavour, so that no replica is handed over."""
