"""Hands the requests of one generator to the pool, in tasks: whole batches for an engine that decodes batches, else one by one.

What is in a batch is a function of the plan alone. Work that is done is left out, so that a second run makes what the first one missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from w2sr.records import Trace
from w2sr.teachers.batches import plan_batches, windows
from w2sr.teachers.engine import Request
from w2sr.teachers.requests import RequestPlan


class PlannedSource:
    """All requests of the plan that `has` (by position) does not know yet."""

    def __init__(self, plan: RequestPlan, has: Callable[[int], bool], batch_size: int) -> None:
        self._tasks = _tasks(plan, plan.positions(), has, batch_size)

    def next(self) -> list[Request] | None:
        """Return the next task's requests; None when nothing is left."""
        return next(self._tasks, None)

    def done(self, traces: Sequence[Trace]) -> None:
        """Take note of finished traces."""

    def given_up(self, requests: Sequence[Request]) -> None:
        """Take note of requests that cannot be made now."""

    @property
    def may_grow(self) -> bool:
        """Whether more may come once what is under way is done."""
        return False


class RescueSource:
    """Sample after sample of a prompt, until one is right or the plan's samples are used up.

    `judge` tells of each trace whether it is right. An engine that decodes batches gets its prompts in rounds (first all first samples,
    then the second samples of the prompts still unsolved), because what is in a batch must not depend on who finished first; others get
    the next sample of a prompt at once.
    """

    def __init__(
        self, plan: RequestPlan, stored: Iterable[Trace], judge: Callable[[Sequence[Trace]], Sequence[bool]], batch_size: int
    ) -> None:
        self._plan = plan
        self._judge = judge
        self._batch_size = batch_size
        self._made = dict.fromkeys(plan.members, 0)
        self._solved_at: dict[int, int] = {}
        self._open: set[int] = set()  # prompts with a request under way
        self._given_up: set[int] = set()
        for traces in _chunks(stored, 1024):
            self._note(traces)
        self._round = 0
        self._ready: deque[list[Request]] = deque()
        self._begin()

    def next(self) -> list[Request] | None:
        """Return the next task's requests; None when nothing is left, or has to wait for verdicts."""
        if not self._ready and not self._open and self._batch_size > 1:
            self._next_rounds()
        if not self._ready:
            return None
        task = self._ready.popleft()
        self._open.update(request.position // self._plan.samples for request in task)
        return task

    def done(self, traces: Sequence[Trace]) -> None:
        """Take note of finished traces: the prompts of the wrong ones are asked again."""
        self._note(traces)
        for trace in traces:
            prompt = trace.position // self._plan.samples
            self._open.discard(prompt)
            if self._batch_size == 1 and self._is_unsolved(prompt):
                self._ready.append([self._request(prompt)])

    def given_up(self, requests: Sequence[Request]) -> None:
        """Take note of requests that cannot be made now: their prompts are left for another run."""
        for request in requests:
            prompt = request.position // self._plan.samples
            self._open.discard(prompt)
            self._given_up.add(prompt)

    @property
    def may_grow(self) -> bool:
        """Whether more may come once what is under way is done."""
        return bool(self._open)

    def _begin(self) -> None:
        if self._batch_size == 1:
            self._ready.extend([self._request(prompt)] for prompt in self._plan.members if self._is_unsolved(prompt))
        else:
            self._next_rounds()

    def _next_rounds(self) -> None:
        """Plan rounds until one has something to do."""
        while not self._ready and self._round < self._plan.samples:
            sample = self._round
            positions = [
                prompt * self._plan.samples + sample
                for prompt in self._plan.members
                if self._solved_at.get(prompt, self._plan.samples) >= sample and prompt not in self._given_up
            ]
            self._ready.extend(_tasks(self._plan, iter(positions), self._is_made, self._batch_size))
            self._round += 1

    def _is_made(self, position: int) -> bool:
        prompt, sample = divmod(position, self._plan.samples)
        return self._made[prompt] > sample

    def _is_unsolved(self, prompt: int) -> bool:
        return prompt not in self._solved_at and prompt not in self._given_up and self._made[prompt] < self._plan.samples

    def _request(self, prompt: int) -> Request:
        return self._plan.request_at(prompt * self._plan.samples + self._made[prompt])

    def _note(self, traces: Sequence[Trace]) -> None:
        for trace, right in zip(traces, self._judge(traces), strict=True):
            prompt, sample = divmod(trace.position, self._plan.samples)
            self._made[prompt] = max(self._made[prompt], sample + 1)
            if right:
                self._solved_at[prompt] = min(sample, self._solved_at.get(prompt, sample))


def _tasks(plan: RequestPlan, positions: Iterator[int], has: Callable[[int], bool], batch_size: int) -> Iterator[list[Request]]:
    for window in windows(positions, batch_size):
        if all(has(position) for position in window.positions):
            continue
        if batch_size == 1:
            yield from ([plan.request_at(position)] for position in window.positions if not has(position))
            continue
        for batch in plan_batches([plan.request_at(position) for position in window.positions], batch_size, window.in_order):
            missing = [request for request in batch if not has(request.position)]
            if missing:
                yield missing


def _chunks(items: Iterable[Trace], size: int) -> Iterator[list[Trace]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
