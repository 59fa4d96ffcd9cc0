"""A group of ranks on Ray Train that run one function together; started again from scratch when a rank dies.

The function keeps its own checkpoints: `run_group` calls it again with the same argument after a failure, and it goes on from there. A
ValueError of a rank means "this cannot work": it reaches the caller as GroupError with its message, and is not tried again.

How many ranks there are is decided here at every start, not by Ray Train's own elastic policy: that one knows neither which sizes carry
the batch nor that a replacement may come in a minute, and says nothing while it waits.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster import blackbox
from cluster.errors import ClusterError

Argument = TypeVar("Argument")

TIMEOUT_S = 1800
POLL_S = 0.5
TRY_S = 3.0  # in which Ray places a group for which there is room
# Ray Train reads these in the driver. Its watchers are processes of their own, which cost seconds of a small machine; ranks that die with
# a reclaimed node are started again like any other.
_QUIET = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
_REFUSAL = "refusal-{rank}.json"


class GroupError(ClusterError):
    """A rank refused to work with the message given, or ranks died more often than allowed."""


@dataclass(frozen=True)
class GroupSpec:
    """How many ranks, what each gets, how often the group may be started again; `work_dir` is a folder of its own that all ranks share.

    `sizes`: the allowed numbers of ranks, ascending; the last is wanted. At every start it is waited for: `wait_s` seconds, and then the
    largest that finds room is taken. Without any room the wait goes on, as it does when there is one size only.
    """

    sizes: tuple[int, ...]
    cpus_per_rank: float
    use_gpu: bool
    max_failures: int
    work_dir: Path
    wait_s: float = 120.0

    @property
    def resources(self) -> dict[str, float]:
        """What one rank gets, as Ray names it."""
        return {**({"CPU": self.cpus_per_rank} if self.cpus_per_rank else {}), **({"GPU": 1.0} if self.use_gpu else {})}


def run_group(
    function: Callable[[Argument], None],
    argument: Argument,
    spec: GroupSpec,
    on_poll: Callable[[], None],
    say: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Run `function(argument)` on every rank and return when all have returned.

    Inside, RANK, WORLD_SIZE and LOCAL_RANK are set and torch.distributed is initialised (gloo, or NCCL on GPUs). `on_poll` is called in
    this thread about twice a second and once at the end; what it raises ends the wait. `say` gets a line when ranks are waited for, when
    there are fewer than wanted and when they are started again. While `stopping` says so nothing new is begun: the call returns as
    soon as no rank runs. Needs a Ray session. Raises GroupError.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    shutil.rmtree(spec.work_dir, ignore_errors=True)  # of a group that was killed or refused
    run_dir = spec.work_dir / f"group-{uuid.uuid4().hex[:8]}"
    run_dir.mkdir(parents=True)
    failures, size = 0, spec.sizes[-1]
    error: BaseException | None
    for attempt in itertools.count(1):
        size = _find_room(_Wait(spec, on_poll, say, stopping), before=size)
        if stopping():
            error = None
            break
        fit = functools.partial(_fit, function, argument, spec, size, run_dir, f"attempt-{attempt}")
        error = _attempt(fit, run_dir, on_poll)
        if error is not None:
            _free_leftovers()
        failures += error is not None and not _lost_its_room(error)
        if error is None or failures > spec.max_failures or not _is_of_the_group(error):
            break
        if stopping():
            say(f"{_first_failure(error, size)}; stopping")
            error = None
            break
        say(f"{_first_failure(error, size)}; starting again from the last checkpoint ({failures} of {spec.max_failures} restarts)")
    shutil.rmtree(spec.work_dir, ignore_errors=True)
    if error is not None:
        raise GroupError(_explain(error, size, spec)) from error


def _attempt(fit: Callable[[], None], run_dir: Path, on_poll: Callable[[], None]) -> BaseException | None:
    """Run the group once; return what it failed with. Raises GroupError when a rank refused."""
    outcome = _Outcome()
    # In a thread of its own, Ray Train leaves Ctrl-C to us; the ranks end with the Ray session.
    thread = threading.Thread(target=outcome.fill, args=(fit,), name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive() and _refusal(run_dir) is None:
        thread.join(POLL_S)
        on_poll()
    on_poll()
    refusal = _refusal(run_dir)
    if refusal is not None:
        raise GroupError(refusal)  # nobody has to wait until Ray Train has ended the ranks
    return outcome.error


def _free_leftovers() -> None:
    """Remove the placement groups that a failed attempt left behind: Ray Train does not when ranks fail while they start.

    Nothing else of this driver uses placement groups. Those of other drivers on the cluster are left alone: the id of a placement group
    ends with that of the job that made it.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    job = ray.get_runtime_context().get_job_id()
    for identity, group in placement_group_table().items():
        if identity.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))


def _find_room(wait: _Wait, before: int) -> int:
    """Return how many ranks find room: the wanted number, or after `wait_s` the largest allowed one; waits until any does, or a stop."""
    spec = wait.spec
    wanted = spec.sizes[-1]
    size = wanted if wait.for_room(wanted, max(spec.wait_s, TRY_S) if len(spec.sizes) > 1 else None) else 0
    while not size and not wait.stopping():
        size = next((fewer for fewer in reversed(spec.sizes[:-1]) if wait.for_room(fewer, TRY_S)), 0)
        size = size or (wanted if wait.for_room(wanted, TRY_S) else 0)
    if 0 < size < wanted:
        wait.say(f"no room for {wanted} ranks in {spec.wait_s:.0f} s: going on with {size}; {wanted} are wanted again at the next restart")
    elif size and before < wanted:
        wait.say(f"there is room for all {wanted} ranks again")
    return size


class _Wait:
    """Waits for room, and says so: from the third second on every five seconds, after a minute every half a minute."""

    def __init__(self, spec: GroupSpec, on_poll: Callable[[], None], say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        self.spec = spec
        self.say = say
        self.stopping = stopping
        self._on_poll = on_poll
        self._began = time.monotonic()
        self._next_line = self._began + 3

    def for_room(self, size: int, limit_s: float | None) -> bool:
        """Return whether a group of `size` found room within `limit_s` seconds (None: waits until it does), and before a stop."""
        import ray
        from ray.util import placement_group, remove_placement_group

        deadline = None if limit_s is None else time.monotonic() + limit_s
        # Ray decides whether there is room; an autoscaler sees what is asked for.
        room = placement_group([self.spec.resources] * size, strategy="PACK")
        try:
            while not room.wait(POLL_S):
                self._on_poll()
                now = time.monotonic()
                if self.stopping() or (deadline is not None and now >= deadline):
                    return False
                if now >= self._next_line:
                    self._next_line = now + (5 if now - self._began < 60 else 30)
                    self.say(self._line(ray.cluster_resources(), ray.available_resources()))
        finally:
            remove_placement_group(room)
        return True

    def _line(self, has: dict[str, float], free: dict[str, float]) -> str:
        spec = self.spec
        needed = " and ".join(f"{number * spec.sizes[-1]:g} {kind}s" for kind, number in spec.resources.items())
        found = " and ".join(f"{free.get(kind, 0):g} of {has.get(kind, 0):g} {kind}s" for kind in spec.resources)
        text = f"waiting for {needed} for {spec.sizes[-1]} ranks; free: {found}"
        if all(free.get(kind, 0) >= number * spec.sizes[-1] for kind, number in spec.resources.items()):
            text += ", but too little on one node for a rank"
        if len(spec.sizes) == 1:
            return text
        left = spec.wait_s - (time.monotonic() - self._began)
        return text + (f"; fewer ranks in {left:.0f} s" if left > 0 else "") + f", at least {spec.sizes[0]}"


class _Outcome:
    """What the fitting thread ended with."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def fill(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread, which raises it
            self.error = error


def _fit(function: Callable[[Argument], None], argument: Argument, spec: GroupSpec, size: int, run_dir: Path, name: str) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={
            "function": function,
            "argument": argument,
            "run_dir": str(run_dir),
            "record": (blackbox.current_folder(), f"{run_dir.name}/{name}"),
        },
        scaling_config=ScalingConfig(num_workers=size, use_gpu=spec.use_gpu, resources_per_worker=spec.resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(run_dir.resolve()),
            # We start it again ourselves, with as many ranks as find room then.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": _rank_environment(spec)},
        ),
        torch_config=TorchConfig(backend="nccl" if spec.use_gpu else "gloo", timeout_s=TIMEOUT_S),
    )
    trainer.fit()


def _rank_environment(spec: GroupSpec) -> dict[str, str]:
    """Environment of the ranks: threads as many as processors, so that two ranks on two cores do not fight."""
    return {"OMP_NUM_THREADS": str(max(1, int(spec.cpus_per_rank))), "PYTHONUNBUFFERED": "1"}


def _rank_main(config: dict[str, Any]) -> None:
    """Run the function on this rank; a ValueError is written down, so that the next attempt does not start the work again."""
    run_dir = Path(config["run_dir"])
    if _refusal(run_dir) is not None:
        return
    try:
        with blackbox.recording(f"rank {os.environ['RANK']}", *config["record"]):
            config["function"](config["argument"])
    except ValueError as error:
        path = run_dir / _REFUSAL.format(rank=os.environ["RANK"])
        aside = path.with_suffix(".aside")
        with contextlib.suppress(OSError):  # the disk may be full, which is what the message says; then it travels by Ray alone
            aside.write_text(json.dumps({"message": str(error)}), encoding="utf-8")
            os.replace(aside, path)
        raise


def _refusal(run_dir: Path) -> str | None:
    """Return the message of the lowest rank that refused, if any did."""
    paths = sorted(run_dir.glob(_REFUSAL.format(rank="*")))
    return str(json.loads(paths[0].read_text(encoding="utf-8"))["message"]) if paths else None


def _is_of_the_group(error: BaseException) -> bool:
    """Whether ranks ended, or did not come to start: what another start may mend."""
    return hasattr(error, "worker_failures") or hasattr(error, "controller_failure")


def _lost_its_room(error: BaseException) -> bool:
    """Whether somebody else took the room that was found: no rank has failed."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _explain(error: BaseException, size: int, spec: GroupSpec) -> str:
    if not _is_of_the_group(error):
        return f"the group of {size} ranks could not run: {_last_line(error)}"
    return (
        f"{_first_failure(error, size)}; that is more often than max_failures={spec.max_failures} allows. Run the same command again to go "
        "on from the last checkpoint"
    )


def _first_failure(error: BaseException, size: int) -> str:
    """Return "rank 1 of 2 failed: ..."; the rank that failed first is the one that did not merely lose its neighbour."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"the group of {size} ranks failed: {_what(getattr(error, 'controller_failure', error))}"
    lost = ("Connection closed by peer", "Connection reset", "timed out", "ActorDiedError", "connectFullMesh")
    by_rank = {rank: _what(failure) for rank, failure in sorted(failures.items())}
    first = next((rank for rank, line in by_rank.items() if not any(word in line for word in lost)), next(iter(by_rank)))
    return f"rank {first} of {size} failed: {by_rank[first]}"


def _what(error: BaseException) -> str:
    """Return what happened in one line; a death in our words, because Ray takes a paragraph of guesses."""
    text = str(error)
    if "node has died" in text or "node was terminated" in text:
        return "its node was lost"
    if "worker process has died" in text:
        return "its process was killed (is the memory full?) or crashed"
    return _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
