"""The pool on a real Ray, with a worker that misbehaves as its units say."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.actor_pool import ActorPool
from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from w2sr.errors import UserError

CPUS = 0.5
"""Of a replica: two pools' actors fit on two processors while the first ones are still going away."""


class UnpicklableError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class FakeWorker:
    """Does what a unit says: ("sleep", seconds), ("die", marker file: only if absent), ("raise", message) and so on."""

    spec = ""

    def load(self, spec: str) -> None:
        if spec == "die":
            os._exit(1)
        if spec == "raise":
            raise UserError("model 'x' is not there")
        if spec == "sleep":
            time.sleep(60)
        self.spec = spec

    def run(self, unit: tuple[str, ...]) -> str:
        verb, *rest = unit
        if verb == "sleep":
            time.sleep(float(rest[0]))
        elif verb == "always die":
            os._exit(1)
        elif verb == "sleep and die":
            time.sleep(float(rest[0]))
            os._exit(1)
        elif verb == "die" and not Path(rest[0]).exists():
            Path(rest[0]).touch()
            os._exit(1)
        elif verb == "raise":
            raise UserError(rest[0])
        elif verb == "raise unpicklable":
            raise UnpicklableError("it holds a lock")
        elif verb == "break":
            raise ZeroDivisionError("a mistake of ours")
        return f"{self.spec}:{verb}:{os.getpid()}"


@dataclass(frozen=True)
class BrokenFactory:
    message: str

    def __call__(self) -> FakeWorker:
        raise UserError(self.message)


Pool = ActorPool[str, tuple[str, ...], str]


@pytest.fixture(scope="module")
def shared_pool(ray_cluster: ClusterSpec) -> Iterator[Pool]:
    assert ray_cluster.num_cpus == 2
    with make_pool() as pool:
        yield pool


@pytest.fixture
def pool(shared_pool: Pool) -> Pool:
    """Two replicas that are ready and serve "a"; one pool for all tests, because processes take a second to start."""
    warm_up(shared_pool)
    return shared_pool


def warm_up(pool: Pool, replicas: int = 2) -> None:
    """Wait until every replica works."""
    pool.load("a")
    units = dict.fromkeys(range(replicas), ("sleep", "0.1"))
    while len({text.split(":")[2] for _, text in pool.map(units)}) < replicas:
        pass


def collect_indices(pool: Pool, units: dict[int, tuple[str, ...]], into: list[int]) -> None:
    for index, _ in pool.map(units):
        into.append(index)


def make_pool(replicas: int = 2, **options: float) -> Pool:
    return ActorPool(FakeWorker, replicas, cpus=CPUS, **options)  # type: ignore[arg-type]


def test_every_unit_comes_back_once_from_two_processes_whatever_the_order(pool: Pool) -> None:
    units = dict.fromkeys(range(20), ("sleep", "0.02"))
    results = list(pool.map(units))
    assert sorted(index for index, _ in results) == list(range(20))
    assert len({text.split(":")[2] for _, text in results}) == 2


def test_a_slow_unit_does_not_hold_up_the_others(pool: Pool) -> None:
    units = {0: ("sleep", "1.5"), **dict.fromkeys(range(1, 10), ("say", "x"))}
    order = [index for index, _ in pool.map(units)]
    assert order[-1] == 0


def test_the_same_processes_serve_one_spec_after_another(pool: Pool) -> None:
    first = [text.split(":") for _, text in pool.map(dict.fromkeys(range(8), ("sleep", "0.05")))]
    pool.load("b")
    second = [text.split(":") for _, text in pool.map(dict.fromkeys(range(8), ("sleep", "0.05")))]
    assert {pid for _, _, pid in first + second} == {str(pid) for pid in pool.pids}
    assert {spec for spec, _, _ in first} == {"a"}
    assert {spec for spec, _, _ in second} == {"b"}


def test_a_unit_whose_replica_died_goes_to_another_one(tmp_path: Path, pool: Pool) -> None:
    units = dict.fromkeys(range(6), ("say", "x")) | {2: ("die", str(tmp_path / "died"))}
    assert sorted(index for index, _ in pool.map(units)) == list(range(6))


def test_a_replica_killed_from_outside_is_replaced(pool: Pool) -> None:
    victim = pool.pids[0]
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    results = list(pool.map(dict.fromkeys(range(6), ("sleep", "0.3"))))
    assert sorted(index for index, _ in results) == list(range(6))
    assert victim not in pool.pids


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_that_kills_every_replica_is_named_after_the_others_in_flight_came_back() -> None:
    got: list[int] = []
    with make_pool(max_attempts=2) as pool:
        warm_up(pool)
        with pytest.raises(ClusterError, match=r"work unit 7 has ended 2 replicas .* lower batch_size"):
            collect_indices(pool, {7: ("always die",), 8: ("sleep", "4")}, got)
        assert got == [8]
        assert [index for index, _ in pool.map({1: ("say", "x")})] == [1], "the pool goes on"


def test_a_death_after_a_failure_does_not_hide_the_failure_or_hang(pool: Pool) -> None:
    with pytest.raises(UserError, match="first"):
        list(pool.map({0: ("raise", "first"), 1: ("sleep and die", "0.5")}))


def test_an_exception_of_the_worker_arrives_as_it_was_raised(pool: Pool) -> None:
    got: list[int] = []
    with pytest.raises(UserError) as caught:
        collect_indices(pool, {0: ("raise", "the template is wrong"), 1: ("sleep", "0.5")}, got)
    assert type(caught.value) is UserError
    assert str(caught.value) == "the template is wrong"
    assert got == [1]
    with pytest.raises(ZeroDivisionError, match="a mistake of ours") as broken:
        list(pool.map({0: ("break",)}))
    assert "test_actor_pool.py" in str(broken.value.__cause__), "the replica's own traceback is kept for --debug"


@pytest.mark.usefixtures("ray_cluster")
def test_an_exception_of_the_factory_or_of_load_arrives_as_it_was_raised() -> None:
    with ActorPool(BrokenFactory("no such thing"), 1, cpus=CPUS) as pool:
        pool.load("a")
        with pytest.raises(UserError, match="no such thing"):
            list(pool.map({0: ("say", "x")}))
    with make_pool(1) as pool2:
        pool2.load("raise")
        with pytest.raises(UserError, match="model 'x' is not there"):
            list(pool2.map({0: ("say", "x")}))
        pool2.load("a")
        assert len(list(pool2.map({0: ("say", "x")}))) == 1


@pytest.mark.usefixtures("ray_cluster")
def test_replicas_that_die_while_they_start_end_the_work() -> None:
    with make_pool(1) as pool:
        pool.load("die")
        with pytest.raises(ClusterError, match="2 replicas in a row died while they started"):
            list(pool.map({0: ("say", "x")}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_replica_that_is_not_ready_in_time_ends_the_work() -> None:
    with make_pool(1, start_timeout_s=1.0) as pool:
        pool.load("sleep")
        with pytest.raises(ClusterError, match=r"was not ready after 1 s"):
            list(pool.map({0: ("say", "x")}))


def test_a_replica_for_which_there_is_no_room_ends_the_work(ray_cluster: ClusterSpec) -> None:
    with ActorPool(FakeWorker, 1, cpus=float(ray_cluster.num_cpus or 0) + 1, start_timeout_s=1.0) as pool:
        pool.load("a")
        with pytest.raises(ClusterError, match=r"3 CPUs .* no machine of the cluster has these free"):
            list(pool.map({0: ("say", "x")}))


def test_a_caller_who_stops_early_can_use_the_pool_again(pool: Pool) -> None:
    for _ in pool.map(dict.fromkeys(range(10), ("sleep", "0.1"))):
        break
    assert sorted(index for index, _ in pool.map({3: ("say", "x"), 4: ("say", "x")})) == [3, 4]


def test_an_exception_that_cannot_travel_still_ends_the_work_with_its_text(pool: Pool) -> None:
    with pytest.raises(Exception, match="it holds a lock"):
        list(pool.map({0: ("raise unpicklable",)}))
