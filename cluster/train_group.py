"""A group of ranks on Ray Train that run one function together; started again from scratch when a rank dies.

The function keeps its own checkpoints: `run_group` calls it again with the same argument after a failure, and it goes on from there. A
ValueError of a rank means "this cannot work": it reaches the caller as GroupError with its message, and is not tried again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import ClusterError

Argument = TypeVar("Argument")

TIMEOUT_S = 1800
POLL_S = 0.5
# Ray Train reads these in the driver. Its watchers are processes of their own, which cost seconds of a small machine; ranks that die with
# a reclaimed node are started again like any other.
_QUIET = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
_REFUSAL = "refusal-{rank}.json"


class GroupError(ClusterError):
    """A rank refused to work with the message given, or ranks died more often than allowed."""


@dataclass(frozen=True)
class GroupSpec:
    """How many ranks, what each gets, how often the group may be started again; `work_dir` is a folder of its own that all ranks share."""

    num_ranks: int
    cpus_per_rank: float
    use_gpu: bool
    max_failures: int
    work_dir: Path


def run_group(function: Callable[[Argument], None], argument: Argument, spec: GroupSpec, on_poll: Callable[[], None]) -> None:
    """Run `function(argument)` on every rank and return when all have returned.

    Inside, RANK, WORLD_SIZE and LOCAL_RANK are set and torch.distributed is initialised (gloo, or NCCL on GPUs). `on_poll` is called in
    this thread about twice a second and once at the end; what it raises ends the wait. Needs a Ray session. Raises GroupError.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    shutil.rmtree(spec.work_dir, ignore_errors=True)  # of a group that was killed or refused
    run_dir = spec.work_dir / f"group-{uuid.uuid4().hex[:8]}"
    run_dir.mkdir(parents=True)
    outcome = _Outcome()
    # In a thread of its own, Ray Train leaves Ctrl-C to us; the ranks end with the Ray session.
    thread = threading.Thread(target=outcome.fill, args=(lambda: _fit(function, argument, spec, run_dir),), name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive() and _refusal(run_dir) is None:
        thread.join(POLL_S)
        on_poll()
    on_poll()
    refusal = _refusal(run_dir)
    if refusal is not None:
        # Ray Train will start the ranks once more, see that they return at once, and end; nobody has to wait for that.
        raise GroupError(refusal)
    shutil.rmtree(spec.work_dir, ignore_errors=True)
    if outcome.error is not None:
        raise GroupError(_explain(outcome.error, spec)) from outcome.error


class _Outcome:
    """What the fitting thread ended with."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def fill(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread, which raises it
            self.error = error


def _fit(function: Callable[[Argument], None], argument: Argument, spec: GroupSpec, run_dir: Path) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": spec.cpus_per_rank, **({"GPU": 1.0} if spec.use_gpu else {})}
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"function": function, "argument": argument, "run_dir": str(run_dir)},
        scaling_config=ScalingConfig(num_workers=spec.num_ranks, use_gpu=spec.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="train",
            storage_path=str(run_dir.resolve()),
            failure_config=FailureConfig(max_failures=spec.max_failures, controller_failure_limit=spec.max_failures),
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


def _explain(error: BaseException, spec: GroupSpec) -> str:
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"the group of {spec.num_ranks} ranks could not run: {_last_line(error)}"
    # The rank that failed first is the one that did not merely lose its neighbour.
    lost = ("Connection closed by peer", "Connection reset", "timed out", "ActorDiedError", "connectFullMesh")
    by_rank = {rank: _last_line(failure) for rank, failure in sorted(failures.items())}
    first = next((rank for rank, line in by_rank.items() if not any(word in line for word in lost)), next(iter(by_rank)))
    return (
        f"rank {first} of {spec.num_ranks} failed more often than max_failures={spec.max_failures} allows: {by_rank[first]}. Run the same "
        "command again to go on from the last checkpoint"
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
