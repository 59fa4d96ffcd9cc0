"""Ask every node of a Ray cluster something, at the same time.

Every task is pinned to its node and never tried elsewhere or again. A node that is slow, dies or cannot run the task is an answer that says
so: a call returns after its timeout at the latest (and a second).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

POLL_S = 0.5
_NO_MODULE = re.compile(r"(?:ModuleNotFoundError|ImportError): .*")
_NAMED = {
    "LocalRayletDiedError": "the node's Ray died meanwhile",
    "NodeDiedError": "the node died meanwhile",
    "OutOfMemoryError": "Ray killed the task because the node ran out of memory",
    "TaskUnschedulableError": "the node is gone",
    "WorkerCrashedError": "the process that ran the task died",
}


@dataclass(frozen=True)
class RayNode:
    """One node that is alive. `name` is the node's own, made unique; `gpus` is what Ray was told, which need not be true."""

    id: str
    name: str
    address: str
    gpus: int


@dataclass(frozen=True)
class NodeAnswer(Generic[Result]):
    """What a node answered: `value`, or why there is none in `error`. Times are seconds of this process's clock since the epoch."""

    node: RayNode
    value: Result | None
    error: str | None
    asked_at: float
    answered_at: float


def alive_nodes() -> list[RayNode]:
    """Return the nodes that are alive, by name; a name that occurs twice gets the beginning of its node's id. Needs a Ray session."""
    import ray

    found = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: (node["NodeName"], node["NodeID"]))
    names = [node["NodeName"] for node in found]
    return [
        RayNode(
            node["NodeID"],
            name if names.count(name) == 1 else f"{name}-{node['NodeID'][:6]}",
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
        )
        for node, name in zip(found, names, strict=True)
    ]


def on_nodes(
    function: Callable[[Argument], Result],
    asked: Sequence[tuple[RayNode, Argument]],
    *,
    timeout_s: float,
    num_gpus: float = 0,
    on_done: Callable[[NodeAnswer[Result]], None] | None = None,
) -> list[NodeAnswer[Result]]:
    """Run `function(argument)` for each (node, argument), all at the same time, and return the answers in that order.

    The function is found by its module and name there, so the nodes need our code. It takes no processor from anybody. `on_done` is called
    in this thread with each answer as it comes.
    With `num_gpus` a task waits until its node has as many free, and CUDA_VISIBLE_DEVICES names them. One node may be asked several times.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    began = time.monotonic()
    places: dict[Any, int] = {}
    asked_at: list[float] = []
    answers: list[NodeAnswer[Result] | None] = [None] * len(asked)
    # A worker that ran a group of ranks keeps what libraries made of its environment: it ends with its task.
    task = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0, max_calls=1 if num_gpus else 0)(function)
    for place, (node, argument) in enumerate(asked):
        asked_at.append(time.time())
        pinned = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
        places[pinned.remote(argument)] = place

    def answer(place: int, value: Result | None, error: str | None) -> None:
        found = NodeAnswer(asked[place][0], value, error, asked_at[place], time.time())
        answers[place] = found
        if on_done is not None:
            on_done(found)

    waiting = list(places)
    while waiting and (left_s := timeout_s - (time.monotonic() - began)) > 0:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(POLL_S, left_s))
        for reference in ready:
            answer(places[reference], *_outcome(reference))
    for reference in waiting:
        ray.cancel(reference, force=True)
        answer(places[reference], None, f"no answer within {timeout_s:g} s")
    return [found for found in answers if found is not None]


def _outcome(reference: Any) -> tuple[Any, str | None]:
    """Return (value, None) or (None, one line that says why there is none)."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    try:
        return ray.get(reference, timeout=5), None
    except GetTimeoutError:
        return None, "the answer was made, but is not to be had"
    except RayTaskError as error:
        missing = _NO_MODULE.findall(str(error.cause))
        if missing:
            return None, f"our code cannot be loaded there ({missing[-1]})"
        return None, " ".join(f"{type(error.cause).__name__}: {error.cause}".split())[:500]
    except RayError as error:
        kind = type(error).__name__
        return None, _NAMED.get(kind) or " ".join(f"{kind}: {error}".split())[:500]
