"""The pool's driver, with replicas that are threads: what reaches the caller, who gets replicas, how a run ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster import fleet
from cluster.errors import ClusterError
from cluster.pool import Pool
from cluster.work import Outcome, Service, Source, Task
from tests.pool_fakes import FakeWorker, ListSource, RefusingFactory, SmallCluster, keys
from w2sr.errors import UserError

A = Service("a", FakeWorker, spec="A", in_driver=True, fatal=(UserError,))


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as opened:
        yield opened


def collect(into: list[Outcome], pool: Pool, *services: Service, source: Source, **options: Any) -> None:
    for outcome in pool.run(services, source, **options):
        into.append(outcome)


def test_every_task_of_every_service_comes_back_once(pool: Pool) -> None:
    services = [replace(A, name=name, spec=name, max_replicas=2, capacity=3) for name in ("x", "y", "z")]
    source = ListSource(**{service.name: [("sleep", 0.002)] * 50 for service in services})
    outcomes = list(pool.run(services, source))
    assert sorted((outcome.task.service, outcome.task.key) for outcome in outcomes) == [(n, k) for n in "xyz" for k in range(50)]
    assert all(outcome.result.startswith(f"{outcome.task.service}:sleep") for outcome in outcomes)
    assert all(outcome.replica.startswith(f"{outcome.task.service}/") and outcome.seconds >= 0.002 for outcome in outcomes)
    assert not pool.drained
    assert [status.finished for status in pool.status()] == [50, 50, 50]


def test_several_tasks_that_end_the_run_together_are_not_waited_for(pool: Pool) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="the endpoint is gone"):
        list(pool.run([replace(A, capacity=6)], ListSource(a=[("raise", "the endpoint is gone")] * 6), drain_timeout_s=60.0))
    assert time.monotonic() - began < 30, "none of them is in flight any more"


def test_a_worker_runs_as_many_tasks_as_its_capacity_and_never_more(pool: Pool) -> None:
    (last,) = [o for o in pool.run([replace(A, capacity=5)], ListSource(a=[("sleep", 0.01)] * 60 + [("most",)])) if o.task.key == 60]
    assert last.result == 5


def test_a_slow_task_holds_up_nobody(pool: Pool) -> None:
    source = ListSource(a=[("sleep", 0.8), *[("sleep", 0.005)] * 30])
    order = keys_in_order(pool.run([replace(A, max_replicas=2, min_replicas=2, prefetch=3)], source))
    assert order[-1] == 0, "what was sent to wait behind it is fetched back"


def test_look_ahead_into_an_endless_source_is_bounded(pool: Pool) -> None:
    def endless() -> Iterator[tuple[Any, ...]]:
        while True:
            yield ("sleep", 0.001)

    source = ListSource(a=endless())
    for done, _ in enumerate(pool.run([replace(A, capacity=4, max_replicas=2)], source)):
        assert source.asked - done <= 2 * (4 + 1) + 2 + 2 * 4 * 1 + 2 * 4
        if done == 300:
            break


def test_tasks_that_come_of_outcomes_are_done_too(pool: Pool) -> None:
    class Growing:
        ready: list[int] = [0]  # noqa: RUF012
        open = 0

        def next(self, service: str) -> Task | None:
            if not self.ready:
                return None
            self.open += 1
            return Task(service, self.ready.pop(), ("say",))

        def exhausted(self, service: str) -> bool:
            return service == "a" and not self.ready and not self.open

    source = Growing()
    seen = []
    for outcome in pool.run([A], source):
        seen.append(outcome.task.key)
        source.open -= 1
        if outcome.task.key < 20:
            source.ready.append(outcome.task.key + 1)
    assert seen == list(range(21))


def test_a_task_put_off_holds_no_slot(pool: Pool) -> None:
    until = time.time() + 0.6
    source = ListSource(a=[("later", until)] * 4 + [("sleep", 0.01)] * 20)
    outcomes = list(pool.run([A], source))
    assert keys(outcomes) == list(range(24))
    assert keys(outcomes[:20]) == list(range(4, 24)), "the others went by"
    assert time.time() >= until


def test_a_task_put_off_too_often_is_unavailable_with_the_reason(pool: Pool) -> None:
    (outcome,) = pool.run([replace(A, max_retries=3)], ListSource(a=[("never",)]))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.result) == ("unavailable", None)
    assert outcome.failure.reason == "put off 3 times; the last reason: 503 overloaded"


def test_a_fatal_exception_ends_the_run_as_it_was_raised_after_the_tasks_in_flight(pool: Pool) -> None:
    got: list[Outcome] = []
    with pytest.raises(UserError) as caught:
        collect(
            got, pool, replace(A, capacity=2), source=ListSource(a=[("raise", "the template is wrong"), ("sleep", 0.3), *[("say",)] * 99])
        )
    assert type(caught.value) is UserError
    assert str(caught.value) == "the template is wrong"
    assert "pool_fakes.py" in str(caught.value.__cause__), "the replica's own traceback is kept for --debug"
    assert 1 in keys(got)
    assert len(got) < 20
    assert keys(pool.run([A], ListSource(a=[("say",)]))) == [0], "the pool goes on"


def test_an_exception_that_cannot_be_pickled_is_told_in_words(pool: Pool) -> None:
    with pytest.raises(ClusterError, match="UnpicklableError: it holds a lock"):
        list(pool.run([A], ListSource(a=[("raise unpicklable",)])))


@pytest.mark.parametrize("service", [replace(A, spec="refuse"), replace(A, factory=RefusingFactory("model 'x' is not there"))])
def test_what_the_factory_or_load_refuses_ends_the_run(pool: Pool, service: Service) -> None:
    with pytest.raises(UserError, match="model 'x' is not there"):
        list(pool.run([service], ListSource(a=[("say",)])))
    assert keys(pool.run([replace(A, spec="B")], ListSource(a=[("say",)]))) == [0]


def test_any_other_exception_means_that_the_worker_is_broken(pool: Pool) -> None:
    outcomes = list(pool.run([replace(A, capacity=3)], ListSource(a=[("sleep", 0.01)] * 10 + [("break",)] + [("sleep", 0.01)] * 10)))
    assert keys(outcomes) == list(range(21))
    (failed,) = [outcome for outcome in outcomes if outcome.failure]
    assert failed.task.key == 10
    assert failed.failure is not None
    assert failed.failure.kind == "quarantined"
    assert "ZeroDivisionError: a mistake of ours" in failed.failure.reason
    assert pool.status()[0].deaths >= 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_its_thread_is_replaced(pool: Pool) -> None:
    outcomes = list(pool.run([A], ListSource(a=[("exit",), ("say",)])))
    assert [bool(outcome.failure) for outcome in sorted(outcomes, key=lambda outcome: outcome.task.key)] == [True, False]


def test_a_task_that_hangs_costs_its_worker_and_is_quarantined(pool: Pool) -> None:
    source = ListSource(a=[("sleep", 0.01), ("sleep", 100), *[("sleep", 0.01)] * 10])
    outcomes = list(pool.run([replace(A, capacity=2, task_timeout_s=0.3)], source))
    assert keys(outcomes) == list(range(12))
    (failed,) = [outcome for outcome in outcomes if outcome.failure]
    assert failed.task.key == 1
    assert "took longer than task_timeout_s=0.3" in str(failed.failure)


def test_a_worker_that_blocks_its_loop_is_missed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SILENCE_S", 0.3)
    outcomes = list(pool.run([replace(A, task_timeout_s=0.2)], ListSource(a=[("block", 2), ("say",)])))
    assert "it hangs" in str([outcome.failure for outcome in outcomes if outcome.task.key == 0])
    assert keys(outcomes) == [0, 1]


def test_workers_that_die_again_and_again_end_the_run_with_the_reason(pool: Pool) -> None:
    with pytest.raises(ClusterError, match=r"service a: 4 workers in a row died with nothing finished .* ZeroDivisionError: a mistake"):
        list(pool.run([replace(A, max_deaths_in_a_row=4)], ListSource(a=[("break",)] * 50)))


def test_replicas_that_fail_while_they_start_end_the_run(pool: Pool) -> None:
    with pytest.raises(ClusterError, match="service a: 3 replicas in a row failed while they started; the last one: OSError: no weights"):
        list(pool.run([replace(A, spec="break")], ListSource(a=[("say",)])))


def test_a_replica_that_never_becomes_ready_ends_the_run(pool: Pool) -> None:
    with pytest.raises(ClusterError, match=r"replica a/1@driver was not ready after 0.5 s: it has its processors and is still loading"):
        list(pool.run([replace(A, spec="sleep", start_timeout_s=0.5)], ListSource(a=[("say",)])))


def test_stop_leases_nothing_more_and_yields_what_is_in_flight(pool: Pool) -> None:
    stop = threading.Event()
    source = ListSource(a=[("sleep", 0.2)] * 1000)
    got = []
    for outcome in pool.run([replace(A, capacity=4)], source, stop=stop):
        got.append(outcome.task.key)
        stop.set()
    assert pool.drained
    assert 4 <= len(got) <= 10
    assert sorted(got) == list(range(len(got)))


def test_a_stop_that_comes_when_all_was_done_left_nothing(pool: Pool) -> None:
    stop = threading.Event()
    source = ListSource(a=[("say",), ("sleep", 0.3), ("sleep", 0.3)])
    for _ in pool.run([replace(A, capacity=3)], source, stop=stop):
        stop.set()
    assert not pool.drained


def test_after_stop_a_replica_does_not_begin_what_waits_at_its_side(pool: Pool) -> None:
    stop = threading.Event()
    got = []
    for outcome in pool.run([replace(A, prefetch=16)], ListSource(a=[("say",), *[("sleep", 0.3)] * 100]), stop=stop):
        got.append(outcome.task.key)
        stop.set()
    assert pool.drained
    assert len(got) <= 4


def test_what_takes_longer_than_the_drain_is_left(pool: Pool) -> None:
    began = time.monotonic()
    got = keys(pool.run([replace(A, capacity=2)], ListSource(a=[("sleep", 60), ("say",)]), stop=lambda: True, drain_timeout_s=0.2))
    assert got == []
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert keys(pool.run([replace(A, capacity=2)], ListSource(a=[("sleep", 60), ("say",)]), stop=stop, drain_timeout_s=0.3)) == [1]
    assert pool.drained
    assert time.monotonic() - began < 5
    assert keys(pool.run([A], ListSource(a=[("say",)]))) == [0]
    assert not pool.drained


def test_an_iterator_closed_early_leaves_the_pool_usable(pool: Pool) -> None:
    run = pool.run([replace(A, capacity=3)], ListSource(a=[("say",), ("sleep", 60), ("sleep", 60)]))
    assert next(run).task.key == 0
    second = pool.run([A], ListSource(a=[("sleep", 0.1)] * 3))
    assert next(second).task.key == 0
    run.close()  # type: ignore[attr-defined]
    assert keys(second) == [1, 2], "closing an old run late does not disturb the one after it"


def test_replicas_are_handed_on_to_the_next_service_of_their_flavour_and_to_the_next_run() -> None:
    made: list[FakeWorker] = []

    def factory() -> FakeWorker:
        made.append(FakeWorker())
        return made[-1]

    services = [replace(A, name=f"s{number}", spec=f"s{number}", factory=factory, max_replicas=2) for number in range(5)]
    with Pool(threads=SmallCluster(2)) as pool:
        outcomes = list(pool.run(services, ListSource(**{service.name: [("sleep", 0.01)] * 20 for service in services})))
        assert len(outcomes) == 100
        assert all(outcome.result.startswith(f"{outcome.task.service}:") for outcome in outcomes)
        again = list(pool.run([replace(services[0], name="again", spec="again")], ListSource(again=[("say",)])))
        assert again[0].result.startswith("again:")
    assert len(made) == 2
    assert {worker.spec for worker in made} == {"closed"}


def test_a_replica_that_is_still_asked_for_is_kept_for_the_next_run() -> None:
    cluster = SmallCluster(1)
    with Pool(cluster) as pool:
        service = replace(A, in_driver=False, min_replicas=2, max_replicas=2)
        for spec in "BCD":
            assert len(list(pool.run([replace(service, spec=spec)], ListSource(a=[("say",)] * 4)))) == 4
        assert len(cluster.queue) == 1
        assert cluster.started == 2, "a process takes longer to start than many a run"
        cluster.grow(1)
        outcomes = list(pool.run([replace(service, spec="E")], ListSource(a=[("sleep", 0.05)] * 20)))
        assert {outcome.result.split(":")[0] for outcome in outcomes} == {"E"}
        assert len({outcome.replica for outcome in outcomes}) == 2
        other = replace(service, name="b", cpus=2)
        assert len(list(pool.run([other], ListSource(b=[("say",)] * 4)))) == 4


def test_minima_come_first_and_a_service_without_work_makes_room_for_others() -> None:
    # The two are of different flavours, so that nothing can be handed over: one has to end.
    big, small = replace(A, name="big", max_replicas=4), replace(A, name="small", cpus=2, min_replicas=2, max_replicas=2)
    small_cluster = SmallCluster(3)
    with Pool(small_cluster, small_cluster) as pool:
        services = [replace(service, in_driver=False) for service in (big, small)]
        source = ListSource(big=[("sleep", 0.02)] * 30, small=[("sleep", 0.01)] * 200)
        seen = set()
        for _ in pool.run(services, source):
            first, second = pool.status()
            seen.add((first.ready, second.ready))
        assert max(ready for ready, _ in seen) == 1, "until both have their minimum nobody gets more"
        assert max(ready for _, ready in seen) == 2
    swap = [replace(big, in_driver=False, max_replicas=1), replace(small, in_driver=False, min_replicas=1)]
    one = SmallCluster(1)
    with Pool(one, one) as pool:
        outcomes = list(pool.run(swap, ListSource(big=[("sleep", 0.01)] * 5, small=[("sleep", 0.01)] * 5)))
        assert len(outcomes) == 10, "the second waits until the first is done"


def test_a_node_that_joins_gets_replicas_and_waiting_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet, "MENTION_AFTER_S", 0.1)
    cluster = SmallCluster(1)
    most = 0
    with Pool(cluster) as pool, caplog.at_level(logging.INFO, "cluster"):
        service = replace(A, in_driver=False, cpus=1, max_replicas=8)
        for done, _ in enumerate(pool.run([service], ListSource(a=[("sleep", 0.02)] * 150))):
            status = pool.status()[0]
            most = max(most, status.ready)
            if done == 30:
                assert (status.ready, status.unplaced) == (1, 1), "Ray is asked for one more, not for seven"
                assert status.waits_for == "1 replica with 1 CPU; the cluster has 1 CPU, free: 0 CPUs"
                cluster.grow(3)
    assert most == 4
    assert "a waits for 1 replica with 1 CPU; the cluster has 1 CPU, free: 0 CPUs" in caplog.text


def test_a_service_for_which_there_is_never_room_ends_the_run_and_says_what_is_missing() -> None:
    with Pool(SmallCluster(0)) as pool:
        service = replace(A, in_driver=False, cpus=4, gpus=1, start_timeout_s=0.5)
        with pytest.raises(
            ClusterError, match=r"service a was not ready after 0.5 s: it waits for 1 replica with 4 CPUs, 1 GPU; the cluster "
        ):
            list(pool.run([service], ListSource(a=[("say",)])))


def test_a_thread_beside_it_frees_nothing_that_a_service_could_wait_for() -> None:
    with Pool(SmallCluster(0)) as pool:
        services = [replace(A, name="far"), replace(A, in_driver=False, cpus=4, start_timeout_s=0.3)]
        with pytest.raises(ClusterError, match=r"service a was not ready after 0.3 s: it waits for 1 replica with 4 CPUs"):
            list(pool.run(services, ListSource(far=[("sleep", 0.05)] * 100, a=[("say",)])))


def test_there_are_never_more_replicas_than_tasks(pool: Pool) -> None:
    outcomes = list(pool.run([replace(A, max_replicas=8, min_replicas=5)], ListSource(a=[("sleep", 0.1)] * 3)))
    assert len({outcome.replica for outcome in outcomes}) == 3


def test_few_tasks_are_shared_by_replicas_that_start_at_different_times() -> None:
    class Slow(FakeWorker):
        async def load(self, _: str) -> None:
            await asyncio.sleep(next(delays))

    delays = iter([0.0, 0.2])
    with Pool() as pool:
        outcomes = list(pool.run([replace(A, factory=Slow, max_replicas=2)], ListSource(a=[("sleep", 2.0)] * 2)))
    assert len({outcome.replica for outcome in outcomes}) == 2


def keys_in_order(outcomes: Iterator[Outcome]) -> list[int]:
    return [outcome.task.key for outcome in outcomes]
