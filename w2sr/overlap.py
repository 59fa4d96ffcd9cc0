"""Evaluates whoever is ready while teachers write and students train, on processors and GPUs of its own (`overlap: true`).

Only idle devices are used for it, never another order of anything that decides a result: what is not done when its turn comes, the
evaluate stage does, going on where this was.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from cluster.placement import Placement, place
from cluster.session import topology_of
from cluster.topology import Topology
from w2sr.artifacts import MANIFEST
from w2sr.config import PipelineConfig
from w2sr.errors import StoppedEarly
from w2sr.evaluation.contestants import Contestant, contestants_of
from w2sr.evaluation.matrix import comparison_pairs
from w2sr.placement import BESIDE, EVALUATION, STREAMED, most_ranks, phases_of
from w2sr.run import Run
from w2sr.stages.evaluate import evaluate, open_pairs
from w2sr.teachers.config import PoolConfig

LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


@contextmanager
def overlap(run: Run, stages: list[str]) -> Iterator[None]:
    """Evaluate beside the body; at its end stop, with everything finished committed.

    Raises what the evaluation raised: at once what can be seen at once (a changed configuration), otherwise at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(run.ray())
        topology = topology_of(run.config.cluster.spec())
        assert topology is not None, "the session is open"
        pool = beside_pool(run.config, topology, stages)
        open_pairs(run, comparison_pairs(run, _ready(run)))  # refuses what does not fit what was begun
        if pool is None:
            log.info("   overlap: there is no room for evaluation beside the other stages; it has its own turn")
            yield
            return
        stop = threading.Event()
        thread = stack.enter_context(ThreadPoolExecutor(1, "evaluate-beside"))
        log.info("   overlap: evaluating beside, on at most %d replicas", pool.replicas)
        work = thread.submit(_work, run, pool, stop)
        stack.callback(stop.set)
        yield
        stop.set()
        work.result()


def beside_pool(config: PipelineConfig, topology: Topology, stages: Sequence[str]) -> PoolConfig | None:
    """Return the pool that evaluation may have while others work: what the planner leaves to it in every phase it shares.

    A training takes the most ranks that find room alone, before anything is left. None: fewer than min_replicas are left.
    """
    left: list[int] = []
    for name in (STREAMED, "generate", "train"):
        phases = phases_of(config, stages, most_ranks(config, topology, name))
        left += [_left(place(topology, phase.demands)) for phase in phases if phase.name == f"{name} + {BESIDE}"]
    pool = config.evaluate.pool
    found = min(left, default=pool.min_replicas)
    return pool.model_copy(update={"replicas": found}) if found >= pool.min_replicas else None


def _left(placement: Placement) -> int:
    return 0 if placement.missing else len(placement.of(EVALUATION))


def _work(run: Run, pool: PoolConfig, stop: threading.Event) -> None:
    done: set[str] = set()
    with contextlib.suppress(StoppedEarly):  # the evaluate stage goes on with it
        while not stop.is_set():
            todo = [contestant for contestant in _ready(run) if contestant.label not in done]
            if todo:
                evaluate(run, comparison_pairs(run, todo), pool, stop)
                done |= {contestant.label for contestant in todo}
            else:
                stop.wait(LOOK_EVERY_S)


def _ready(run: Run) -> list[Contestant]:
    return [each for each in contestants_of(run) if each.kind != "student" or (run.stage("train", each.label) / MANIFEST).exists()]
