"""The dispatcher's invariants, under any order of completions, put-offs and deaths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.dispatch import Dispatcher
from cluster.work import Service, Task


def make(capacity: int = 1, **options: int) -> Dispatcher:
    return Dispatcher(Service("s", object, capacity=capacity, **options))  # type: ignore[arg-type]


def halves(payload: list[int]) -> list[list[int]]:
    middle = len(payload) // 2
    return [part for part in (payload[:middle], payload[middle:]) if part]


def task(*items: int) -> Task:
    return Task("s", items[0], list(items), halves)


def leased(work: Dispatcher, now: float = 0.0, starting: int = 0) -> dict[str, list[list[int]]]:
    return {replica: [lease.task.payload for lease in leases] for replica, leases in work.assign(now, starting).items()}


def test_every_slot_is_filled_in_order_and_evenly() -> None:
    work = make(capacity=4, prefetch=0)
    for replica in "abc":
        work.add_replica(replica)
    for number in range(6):
        work.put(task(number))
    given = leased(work)
    assert sorted(len(tasks) for tasks in given.values()) == [2, 2, 2]
    assert sorted(item for tasks in given.values() for (item,) in tasks) == list(range(6))


def test_a_replica_gets_more_than_it_can_run_only_while_many_tasks_wait() -> None:
    work = make(capacity=4, prefetch=2)
    work.add_replica("a")
    work.add_replica("b")
    for number in range(100):
        work.put(task(number))
    assert [len(tasks) for tasks in leased(work).values()] == [6, 6]
    few = make(capacity=4, prefetch=2)
    few.add_replica("a")
    few.add_replica("b")
    for number in range(10):
        few.put(task(number))
    assert [len(tasks) for tasks in leased(few).values()] == [4, 4], "the last two go to whoever is free first"


def test_a_replica_that_came_from_elsewhere_may_answer_its_former_services_recall_late() -> None:
    new = make()
    new.give_back("a", ())  # it loads what is new, and the answer was on its way
    assert new.num_open == 0
    with pytest.raises(AssertionError, match="a gives back"):
        new.give_back("a", (1,))


def test_a_replica_that_will_soon_be_there_finds_work() -> None:
    work = make(capacity=1, prefetch=1)
    work.add_replica("a")
    for number in range(6):
        work.put(task(number))
    assert leased(work, starting=1) == {"a": [[0], [1]]}
    work = make(capacity=1, prefetch=1)
    work.add_replica("a")
    work.put(task(0))
    work.put(task(1))
    assert leased(work, starting=1) == {"a": [[0]]}


def test_tasks_that_wait_at_a_busy_replica_are_recalled_for_one_that_has_nothing_to_do() -> None:
    work = make(capacity=1, prefetch=2)
    work.add_replica("a")
    for number in range(8):
        work.put(task(number))
    first, *rest = work.assign(0.0)["a"]
    while work.num_waiting:
        work.add_replica(f"r{work.num_waiting}")
        work.assign(0.0)
    assert rest
    assert work.recall() == {}, "all are busy"
    work.add_replica("b")
    assert work.assign(0.0) == {}
    assert work.recall() == {"a": 1}
    assert work.recall() == {}, "it was asked already"
    work.give_back("a", [rest[-1].number])
    assert leased(work) == {"b": [rest[-1].task.payload]}
    assert work.complete("a", first.number) == first.task


def test_when_nothing_more_is_to_be_begun_all_that_waits_at_a_replica_is_recalled_but_not_from_suspects() -> None:
    work = make(capacity=2, prefetch=4)
    for name in ("a", "b", "c"):
        work.add_replica(name)
    for number in range(30):
        work.put(task(number))
    held = {name: [lease.number for lease in leases] for name, leases in work.assign(0.0).items()}
    waiting = {name: len(numbers) - 2 for name, numbers in held.items()}
    assert sum(waiting.values()) > 0
    assert work.recall_all() == {name: count for name, count in waiting.items() if count}
    assert work.recall_all() == {}, "they were asked already"
    for name, numbers in held.items():
        work.give_back(name, numbers[2:])
    assert work.num_leased == 6
    assert work.recall_all() == {}, "what is left has begun"


def test_a_task_that_is_put_off_waits_its_time_and_is_given_up_after_max_retries() -> None:
    work = make(max_retries=2)
    work.add_replica("a")
    work.put(task(7))
    now = 0.0
    for _ in range(2):
        (lease,) = work.assign(now)["a"]
        assert work.retry("a", lease.number, "429", 5.0, now) is None
        assert work.next_due() == now + 5.0
        assert not work.assign(now + 4.9)
        now += 5.0
    (lease,) = work.assign(now)["a"]
    given_up = work.retry("a", lease.number, "503", 5.0, now)
    assert given_up is not None
    assert given_up[1].kind == "unavailable"
    assert "put off 2 times; the last reason: 503" in given_up[1].reason
    assert work.num_open == 0


def test_an_endpoint_that_is_down_does_not_draw_the_whole_source_in() -> None:
    work = make(capacity=4, max_replicas=1)
    work.add_replica("a")
    for number in range(1000):
        for _ in range(work.room()):
            work.put(task(number))
        for lease in work.assign(0.0).get("a", []):
            work.retry("a", lease.number, "down", 60.0, 0.0)
    assert work.num_open < 40


def test_suspects_run_apart_and_a_single_one_is_quarantined_after_two_deaths_alone() -> None:
    work = make(capacity=2, prefetch=0)
    work.add_replica("a")
    work.put(task(1))
    work.put(task(2))
    work.assign(0.0)
    assert work.lose("a", "boom") == []
    work.put(task(3))
    work.add_replica("b")
    assert leased(work) == {"b": [[1]]}, "alone, although it has room and others wait"
    assert work.lose("b", "boom") == []
    work.add_replica("c")
    assert leased(work) == {"c": [[2]]}
    work.add_replica("d")
    assert leased(work) == {"d": [[1]]}
    ((quarantined, failure),) = work.lose("d", "bang")
    assert (quarantined.payload, failure.kind) == ([1], "quarantined")
    assert failure.reason == "2 workers died while it was alone in them; the last one: bang"


def test_a_batch_that_kills_is_divided_until_the_one_that_kills_is_alone() -> None:
    work = make(prefetch=0)
    work.put(task(*range(8)))
    done, quarantined = play(work, {5}, ["a"])
    assert quarantined == [5]
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7]


def test_the_death_of_a_node_is_held_against_nothing() -> None:
    work = make(capacity=2, prefetch=0)
    work.put(task(1))
    work.put(task(2))
    for replica in "abcde":
        work.add_replica(replica)
        assert leased(work) == {replica: [[1], [2]]}, "together, in their order"
        assert work.lose(replica, "the node is gone", counts=False) == []


def test_only_tasks_that_were_at_work_are_suspects() -> None:
    work = make(capacity=1, prefetch=2)
    work.add_replica("a")
    for number in range(20):
        work.put(task(number))
    first, *rest = work.assign(0.0)["a"]
    assert len(rest) == 2
    work.lose("a", "RuntimeError", [first.number])
    assert work.num_suspects == 1
    work.add_replica("b")
    assert leased(work) == {"b": [[0]]}


def test_a_replica_is_not_known_twice_and_leaves_with_empty_hands() -> None:
    work = make()
    work.add_replica("a")
    with pytest.raises(AssertionError, match="there already"):
        work.add_replica("a")
    work.put(task(1))
    work.assign(0.0)
    with pytest.raises(AssertionError, match="holds tasks"):
        work.remove_replica("a")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    poison=st.sets(st.integers(0, 200), max_size=4),
    capacity=st.integers(1, 12),
    prefetch=st.integers(0, 6),
    replicas=st.integers(1, 4),
)
def test_exactly_the_tasks_that_kill_are_quarantined_and_all_others_are_done(
    sizes: list[int], poison: set[int], capacity: int, prefetch: int, replicas: int
) -> None:
    work = make(capacity=capacity, prefetch=prefetch)
    start = 0
    for size in sizes:
        work.put(task(*range(start, start + size)))
        start += size
    done, quarantined = play(work, poison, [f"r{number}" for number in range(replicas)])
    assert sorted(quarantined) == sorted(item for item in poison if item < start)
    assert sorted(done + quarantined) == list(range(start))


def play(work: Dispatcher, poison: set[int], replicas: list[str]) -> tuple[list[int], list[int]]:
    """Let replicas work in turns; one that has a task with poison in it dies at once. Deaths must not be many more than it takes."""
    done: list[int] = []
    quarantined: list[int] = []
    held: dict[str, dict[int, list[int]]] = {name: {} for name in replicas}
    deaths = 0
    for name in replicas:
        work.add_replica(name)
    while work.num_open:
        for name, leases in work.assign(0.0).items():
            held[name].update((lease.number, lease.task.payload) for lease in leases)
        for name in replicas:
            if any(poison & set(payload) for payload in held[name].values()):
                deaths += 1
                quarantined += [item for lost, _ in work.lose(name, "poison") for item in lost.payload]
                held[name] = {}
                work.add_replica(name)
            elif held[name]:
                number, payload = held[name].popitem()
                assert work.complete(name, number).payload == payload
                done += payload
    assert deaths <= 14 * (len(poison) + 1)
    return done, quarantined


class AnyOrder(RuleBasedStateMachine):
    """Puts, leases, completions, put-offs, deaths and departures in any order; the model is where each item must be."""

    @initialize(capacity=st.integers(1, 5), prefetch=st.integers(0, 3), max_retries=st.integers(0, 2), max_deaths=st.integers(1, 3))
    def begin(self, capacity: int, prefetch: int, max_retries: int, max_deaths: int) -> None:
        self.limit = capacity + prefetch
        self.work = make(capacity, prefetch=prefetch, max_retries=max_retries, max_deaths=max_deaths)
        self.now = 0.0
        self.taken: list[int] = []
        self.given_back: Counter[int] = Counter()
        self.held: dict[str, dict[int, list[int]]] = {}
        self.born = 0

    @rule(size=st.integers(1, 6))
    def put(self, size: int) -> None:
        items = range(len(self.taken), len(self.taken) + size)
        self.taken += items
        self.work.put(task(*items))

    @precondition(lambda self: len(self.held) < 5)
    @rule()
    def join(self) -> None:
        self.born += 1
        self.work.add_replica(f"r{self.born}")
        self.held[f"r{self.born}"] = {}

    @rule(later=st.floats(0, 3), starting=st.integers(0, 2))
    def assign(self, later: float, starting: int) -> None:
        self.now += later
        for replica, leases in self.work.assign(self.now, starting).items():
            for lease in leases:
                assert not any(lease.number in mine for mine in self.held.values()), "leased twice"
                self.held[replica][lease.number] = lease.task.payload
        if any(len(mine) == 0 for mine in self.held.values()):
            assert self.work.num_waiting == 0, "a free replica while tasks wait"
            assert self.work.num_suspects == 0

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        for replica, number in self.pick(data):
            payload = self.held[replica].pop(number)
            assert self.work.complete(replica, number).payload == payload
            self.given_back.update(payload)

    @rule(some=st.booleans(), everything=st.booleans())
    def recall(self, some: bool, everything: bool) -> None:
        for replica, count in (self.work.recall_all() if everything else self.work.recall()).items():
            assert 0 < count <= len(self.held[replica])
            numbers = list(self.held[replica])[-count:] if some else []
            self.work.give_back(replica, numbers)
            for number in numbers:
                del self.held[replica][number]

    @rule(data=st.data(), after_s=st.floats(0, 5))
    def put_off(self, data: st.DataObject, after_s: float) -> None:
        for replica, number in self.pick(data):
            payload = self.held[replica].pop(number)
            given_up = self.work.retry(replica, number, "busy", after_s, self.now)
            if given_up is not None:
                assert given_up[0].payload == payload
                self.given_back.update(payload)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), counts=st.booleans(), known=st.booleans())
    def die(self, data: st.DataObject, counts: bool, known: bool) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        mine = self.held.pop(replica)
        at_work = data.draw(st.sets(st.sampled_from(sorted(mine)))) if known and mine else None
        for lost, failure in self.work.lose(replica, "killed", at_work, counts=counts):
            assert counts, "the death of a node is held against nobody"
            assert failure.kind == "quarantined"
            self.given_back.update(lost.payload)

    @precondition(lambda self: any(not mine for mine in self.held.values()))
    @rule()
    def leave(self) -> None:
        replica = next(name for name, mine in self.held.items() if not mine)
        del self.held[replica]
        self.work.remove_replica(replica)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "work"):
            return
        assert all(count == 1 for count in self.given_back.values())
        assert self.work.num_leased == sum(map(len, self.held.values()))
        assert all(len(mine) <= self.limit for mine in self.held.values())
        assert all(self.work.held(name) == len(mine) for name, mine in self.held.items())
        if not self.work.num_open:
            assert sorted(self.given_back) == self.taken

    def teardown(self) -> None:
        """In calm weather everything comes back."""
        if not hasattr(self, "work"):
            return
        self.join()
        while self.work.num_open:
            self.now += 10.0
            self.assign(0.0, 0)
            for replica, mine in self.held.items():
                for number in list(mine):
                    self.given_back.update(mine.pop(number))
                    self.work.complete(replica, number)
        assert sorted(self.given_back.elements()) == self.taken

    def pick(self, data: st.DataObject) -> Iterator[tuple[str, int]]:
        leases = sorted((replica, number) for replica, mine in self.held.items() for number in mine)
        if leases:
            yield data.draw(st.sampled_from(leases))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
