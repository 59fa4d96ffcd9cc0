"""What a rank runs in place of `w2sr.training` to be killed at a chosen moment, or to stand still. Used by tests and benchmarks.

The order for one start lies beside the spec, in NAME.order: a Kill, or "stand still".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from w2sr.progress import MetricsLog
from w2sr.training import checkpoint, export, loop, universal, watchdog
from w2sr.training.__main__ import main
from w2sr.training.dist import leave_group
from w2sr.training.engine import Engine
from w2sr.training.feed import Feed
from w2sr.training.spec import TrainSpec
from w2sr.training.writing import Writer

LOOPS_SHUTIL = SimpleNamespace(rmtree=shutil.rmtree)  # the loop's alone
# What is instrumented: the moment, where the function lives, its name.
MOMENTS: dict[str, tuple[Any, str]] = {
    "starting: looking for a checkpoint": (checkpoint, "find"),
    "starting: loading the model": (Engine, "__init__"),
    "starting: loading a checkpoint": (Engine, "load"),
    "converting for another number of ranks": (universal, "_convert"),
    "collating": (Feed, "micro_batches"),
    "forward and backward": (loop._Trainer, "_gradients"),
    "updating weights": (Engine, "step"),
    "writing a row of metrics": (MetricsLog, "log"),
    "taking the state for a checkpoint": (Engine, "save"),
    "writing a checkpoint's file": (Writer, "_save"),
    "syncing a checkpoint's files": (checkpoint, "sync_tree"),
    "writing the manifest, renaming": (checkpoint.Checkpoints, "_complete"),
    "removing the checkpoint before": (checkpoint.Checkpoints, "_remove_before"),
    "exporting: writing the model": (export, "write_weights"),
    "exporting: comparing logits": (export, "_difference"),
    "exporting: syncing, renaming": (export, "_publish"),
    "writing the result": (loop, "write_text"),
    "removing the last checkpoint": (LOOPS_SHUTIL, "rmtree"),
}


@dataclass(frozen=True)
class Kill:
    """Kill at the `nth` time that `moment` begins on any rank, `delay_s` later; `rank` None: all ranks.

    `num_steps`: kill in so many steps if the moment has not come until then; None: do not.
    """

    moment: str
    nth: int
    delay_s: float
    rank: int | None
    num_steps: int | None = None


@dataclass(frozen=True)
class Death:
    """What was under way, on the rank that saw the moment, when the kill came."""

    moment: str
    step: int


def obey(kill: Kill, notes: Path) -> None:
    """Instrument this rank. All ranks of a start share the folder `notes`, which is empty before."""
    (notes / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    under_way = list[str]()
    lock, seen, struck = threading.Lock(), Counter[str](), False

    def strike() -> None:
        time.sleep(kill.delay_s)
        victims = [kill.rank] if kill.rank is not None else range(int(os.environ["WORLD_SIZE"]))
        death = Death(under_way[-1] if under_way else "between two moments", steps_done(notes.parent))
        aside = notes / f"death.{os.environ['RANK']}"
        aside.write_text(json.dumps(dataclasses.asdict(death)))
        with contextlib.suppress(FileExistsError):
            os.link(aside, notes / "death")  # of two ranks that come at once the first one's counts
        for pid in sorted((int((notes / f"pid-{rank}").read_text()) for rank in victims), key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)

    def watched(moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal struck
            with lock:
                under_way.append(moment)
                seen[moment] += 1
                due = not struck and (seen[kill.moment] == kill.nth or seen["updating weights"] == kill.num_steps)
                struck = struck or due
            if due:
                threading.Thread(target=strike, daemon=True).start()
            try:
                return function(*arguments, **options)
            finally:
                with lock:
                    under_way.remove(moment)

        return call

    loop.shutil = LOOPS_SHUTIL  # type: ignore[attr-defined]
    for moment, (where, name) in MOMENTS.items():
        setattr(where, name, watched(moment, getattr(where, name)))


def steps_done(output: Path) -> int:
    """Return the last step in metrics.jsonl."""
    path = output / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.is_file() else []
    return int(json.loads(rows[-1])["step"]) if rows and rows[-1].endswith("}") else 0


def stand_still(late_step: int, stopped_step: int, output: Path) -> None:
    """Let rank 1 wait in its data in optimizer step `late_step` (from 0) until the watchdogs have said so; stop its process in another."""
    watchdog.ASKED_S, watchdog.GATHER_S = 0.5, 3.0
    micro_batches, said = Feed.micro_batches, output / "stalls" / "said.txt"

    def late(self: Feed, asked: Any) -> Iterator[Any]:
        if os.environ["RANK"] == "1" and list(asked.rows) == list(self.step(late_step).rows):
            while not said.exists() or f"step {late_step + 1} takes" not in said.read_text():
                time.sleep(0.05)
        if os.environ["RANK"] == "1" and list(asked.rows) == list(self.step(stopped_step).rows):
            (output / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return micro_batches(self, asked)

    Feed.micro_batches = late  # type: ignore[method-assign]


if __name__ == "__main__":
    spec = TrainSpec.from_json(Path(sys.argv[1]).read_text(), sys.argv[1])
    order = json.loads(Path(sys.argv[1]).with_suffix(".order").read_text())
    if order == "stand still":
        stand_still(3, 5, Path(spec.output))
    else:
        obey(Kill(**order), Path(spec.output) / "notes")
    try:
        code = main(sys.argv[1:])
    finally:
        leave_group()
    sys.exit(code)
