"""Trains one student. Imports neither Ray nor the cluster package: the same function runs under torchrun and under Ray Train.

What always holds:
- after any kill, `train(spec)` again goes on from the newest complete checkpoint and ends in the same bits (same number of ranks);
- with another number of ranks it goes on with the same rows in the same steps, equal up to the rounding of other sums;
- `model/` exists only after its logits were compared with the trained model's; `result.json` is written last;
- rows may come in waves while it runs: ranks wait together for those of the next step, and the bits do not depend on when they come;
- a step whose loss or gradient is not finite changes no weight: it stops the training and names the examples.
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from w2sr.errors import StoppedEarly, UserError
from w2sr.packing.pack import MicroBatch
from w2sr.tables import write_text
from w2sr.training import checkpoint
from w2sr.training.average import WeightAverage
from w2sr.training.checkpoint import Checkpoints, Position
from w2sr.training.disk import full_disk_explained
from w2sr.training.dist import Group, join_group
from w2sr.training.engine import Engine
from w2sr.training.export import export
from w2sr.training.feed import Feed
from w2sr.training.objective import Objective
from w2sr.training.profiling import check_profile
from w2sr.training.schedule import check_schedule, learning_rate
from w2sr.training.selection import BEST, Selection
from w2sr.training.signals import STOP_FILE, Stop, stop_requests
from w2sr.training.spec import RESULT, Ended, TrainResult, TrainSpec
from w2sr.training.trackers import require_clients
from w2sr.training.update_ratios import UpdateRatios
from w2sr.training.watch import Watch

CHECKPOINTS = "checkpoints"
LOOK_EVERY_S = 1.0  # at rows that are waited for
_log = logging.getLogger(__name__)


def train(spec: TrainSpec) -> bool:
    """Train, or go on training, the student of `spec`, and export it; every rank calls it. Return whether it is finished.

    False: SIGTERM came, or the file `stop` in the student's folder; the state is saved. Raises StoppedEarly, with the state saved, before
    spec.stop_by, and UserError for what the user can change (rows, ranks, a checkpoint of another training, a loss that is not finite).
    """
    if TrainResult.load(Path(spec.output)) is not None:
        remove_checkpoints(spec)  # a kill may have come between the two
        return True
    require_clients(spec.train.watch.trackers)
    with full_disk_explained(Path(spec.output)), ExitStack() as stack:
        group = join_group(spec.train.use_gpu, spec.train.memory.sequence_parallel)
        _prepare_process(spec)
        spec.train.check_size(group.world_size)
        trainer = _Trainer(spec, group, stack)
        if not trainer.run():
            return False
        trainer.finish()
    return True


def train_each(specs: Sequence[str]) -> None:
    """Train the students of `specs` (TrainSpec.to_json) one after another in this process, each as if it were alone; until a stop."""
    with suppress(StoppedEarly):
        for text in specs:
            finished = train(TrainSpec.from_json(text, "the spec of a student"))
            gc.collect()  # DeepSpeed's hooks hold the old model in reference cycles
            if not finished:
                return


def remove_checkpoints(spec: TrainSpec) -> None:
    """Remove what a finished training does not need any more, and what a kill left of its result."""
    for aside in Path(spec.output).glob(f".{RESULT}.*"):
        aside.unlink(missing_ok=True)
    if not spec.train.keep_checkpoints:
        for name in (CHECKPOINTS, BEST):
            shutil.rmtree(Path(spec.output) / name, ignore_errors=True)


class _Trainer:
    """The state of one training on this rank; `stack` closes what it opens."""

    def __init__(self, spec: TrainSpec, group: Group, stack: ExitStack) -> None:
        self.spec = spec
        self.group = group
        self.checkpoints = Checkpoints(group, Path(spec.output) / CHECKPOINTS, spec.identity(), spec.train.asynchronous_checkpoints)
        stack.callback(self.checkpoints.close)
        saved = self.checkpoints.find(sharded=spec.train.zero_stage > 0)
        self.objective = Objective(spec, group)
        stack.callback(self.objective.close)
        self.engine = Engine(spec.train, spec.model, group, self.objective.prepare, universal=saved is not None and saved.universal)
        stack.callback(self.engine.close)
        self.feed = Feed(spec, group, self.engine.module.config)
        self.num_steps = self.feed.num_steps
        check_schedule(spec.train, self.num_steps)
        check_profile(spec.train.watch.profile, self.num_steps)
        self.average = WeightAverage(spec.train.optimizer.average, self.engine, self.num_steps)
        self.selection = Selection(spec, group, self.engine, self.objective, self.feed, self.average)
        if saved is not None:
            self.engine.load(saved.folder, checkpoint.TAG)
            self.objective.read(saved.root)
            self.average.read(saved.root, saved.position.step)
            self.selection.read(saved.root)
        self.position = (saved.position if saved is not None else Position()).on(group.world_size)
        self.watch = Watch(spec, group, self.position.step + 1, self.engine.module)
        stack.callback(self.watch.close)
        self._rows_are_whole = self.feed.rows.waves == 1  # on all ranks, as far as they have told each other
        self.ratios = UpdateRatios(spec, group, self.engine, first_step=self.position.step + 1)

    def run(self) -> bool:
        """Do the remaining steps and save; return False when asked to stop before the last one. Raises StoppedEarly."""
        leads, file = self.group.rank == 0, Path(self.spec.output) / STOP_FILE
        with stop_requests(self.spec.stop_at if leads else None, file if leads else None) as stop_requested:
            while not self.is_over:
                step = self.position.step
                if stop := self._await_rows(step, stop_requested):
                    self._stop(stop, file)
                    return False
                if step == 0:
                    self._evaluate(0)
                with self.watch.step(step + 1):
                    stop = self._step(step, stop_requested(self.watch.next_s + 2 * self.checkpoints.longest_write_s))
                self._evaluate(step + 1)
                if stop or ((step + 1) % self.spec.train.checkpoint_every == 0 and not self.is_over):
                    self._save()
                if stop and not self.is_over:
                    self._stop(stop, file)
                    return False
            # Here, where SIGTERM does not end the process in the middle of it.
            self._save()
            self.checkpoints.settle()
            if stop := self._await_rows(0, stop_requested):  # which the export looks at
                self._stop(stop, file)
                return False
        return True

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the selection split has ended the training."""
        return self.position.step == self.num_steps or self.selection.is_over

    def _await_rows(self, step: int, stop_requested: Callable[[float], Stop]) -> Stop:
        """Wait with all ranks until each has the rows of `step` (from 0), or one is to stop; then what is done is saved.

        Once all ranks have all rows, they do not ask each other any more.
        """
        is_first = True
        while not self._rows_are_whole:
            stop = stop_requested(self.watch.next_s + 2 * self.checkpoints.longest_write_s)
            flags = [self.feed.has(step), self.feed.is_whole, stop is Stop.ASKED, stop is Stop.LATE]
            num_ready, num_whole, num_asked, num_late = self.group.sum([float(flag) for flag in flags])
            self._rows_are_whole = num_whole == self.group.world_size
            if num_ready == self.group.world_size:
                break  # who is to stop does one more step, as always
            if is_first:
                self._begin_wait(step)
                is_first = False
            if num_asked or num_late:
                return Stop.ASKED if num_asked else Stop.LATE
            self.watch.waits(step + 1)
            time.sleep(LOOK_EVERY_S)
        return Stop.NO

    def _begin_wait(self, step: int) -> None:
        """Say that the rows of `step` (from 0) are waited for, and save what is done: it may take long."""
        if self.group.rank == 0:
            there = f"{len(self.feed.rows.parts)} of {self.feed.rows.waves} waves are there"
            _log.info("%s: step %d waits for its rows; %s", self.spec.name, step + 1, there)
        if self.position.step:  # before the first step there is nothing to lose
            self._save()
            self.checkpoints.settle()

    def _stop(self, why: Stop, file: Path) -> None:
        """Complete the checkpoint; raises StoppedEarly when it is late."""
        self.checkpoints.settle()
        if self.group.rank == 0:
            file.unlink(missing_ok=True)
        if why is Stop.LATE:
            raise StoppedEarly(
                f"{self.spec.name}: saved after step {self.position.step} of {self.num_steps}, before stop_by={self.spec.stop_by}; "
                "run the same command again to go on"
            )

    def finish(self) -> None:
        """Export, say so, and then remove the checkpoint."""
        exported_step = self.selection.put_in_place(self.position.step)
        probe = next(self.feed.micro_batches(self.feed.step(0)))[1]
        export(self.engine, self.group, self.spec.model, Path(self.spec.output) / "model", probe.input_ids)
        if self.group.rank == 0:
            done = self.position
            seconds, rank_seconds = round(done.seconds, 3), round(done.rank_seconds, 3)
            ended: Ended = "all steps" if done.step == self.num_steps else "no gain on selection"
            result = TrainResult(done.step, done.tokens, done.supervised_tokens, seconds, rank_seconds, done.sizes, exported_step, ended)
            write_text(Path(self.spec.output) / RESULT, result.to_json())
            remove_checkpoints(self.spec)
        self.group.barrier()
        self.watch.finished = True

    def _step(self, number: int, stop: Stop) -> Stop:
        """Do one optimizer step; return whether any rank is to stop."""
        began = time.monotonic()
        step = self.feed.step(number)
        with self.watch.timed("data"):
            micro_batches = list(self.feed.micro_batches(step))
        normaliser = self.objective.normaliser(self.feed.rows, step)
        nll, suspects = self._gradients(number, micro_batches, normaliser)
        # One small all-reduce a step carries the loss and all flags; it stands before the update, so a bad step changes nothing.
        flags = [bool(suspects), self.checkpoints.is_written(), stop is Stop.ASKED, stop is Stop.LATE]
        total, minimised, num_bad, num_written, num_asked, num_late = self.watch.summed([nll, self.objective.sum, *map(float, flags)])
        if num_written == self.group.world_size:
            with self.watch.timed("checkpoint"):
                self.checkpoints.settle()
        if num_bad:
            self._refuse(number, "the loss", suspects)
        rate = learning_rate(self.spec.train, number, self.num_steps)
        self.ratios.before(number + 1)
        norm = self.engine.step(rate)
        while self.engine.overflowed:  # in fp16: the loss is scaled by half as much now
            self._gradients(number, micro_batches, normaliser)
            norm = self.engine.step(rate)
        if not norm < float("inf"):
            self._refuse(number, "the gradient", [example for examples, _ in micro_batches for example in examples])
        ratios = self.ratios.after(number + 1, rate)
        self.average.update(number + 1)
        seconds = time.monotonic() - began
        self.position = self.position.after(step.num_tokens, step.num_supervised, seconds, self.group.world_size)
        values = {"loss": total / step.num_supervised, "grad_norm": norm, "learning_rate": rate, "supervised_tokens": step.num_supervised}
        values |= {**self.objective.shown(minimised / normaliser), **ratios, **self.watch.of_step(step, seconds)}
        self.watch.log(number + 1, values)
        return Stop.ASKED if num_asked else Stop.LATE if num_late else Stop.NO

    def _gradients(self, step: int, micro_batches: Sequence[tuple[list[str], MicroBatch]], normaliser: float) -> tuple[float, list[str]]:
        """Accumulate the gradients of the loss of `step`; return the NLL and the examples of micro-batches where it is not finite."""
        _seed_step(self.spec.seed, step, self.group.rank)
        self.objective.begin_step(step, self.num_steps)
        nll, suspects = 0.0, list[str]()
        for number, (examples, batch) in enumerate(micro_batches):
            loss = self.objective.loss(self.engine, batch)
            if not abs(loss.nll) < float("inf"):
                suspects += examples
            nll += loss.nll
            self.engine.backward(loss.total * (self.group.world_size / normaliser), last=number + 1 == len(micro_batches))
        return nll, suspects

    def _refuse(self, step: int, what: str, suspects: list[str]) -> None:
        names = sorted({name for of_rank in self.group.all(suspects) for name in of_rank})
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise UserError(
            f"{self.spec.name}: {what} of step {step + 1} is not finite; the weights were not changed by it. Its micro-batch holds "
            f"examples {shown}. Look at those rows in the curated arm, or lower train.learning_rate={self.spec.train.learning_rate}"
        )

    def _save(self) -> None:
        with self.watch.timed("checkpoint"):
            self.checkpoints.save(self.engine, self.position, self.objective.write, self.average.write, self.selection.write)

    def _evaluate(self, step: int) -> None:
        """Evaluate the selection split where it is due after `step` optimizer steps."""
        if self.selection.is_due(step, self.num_steps):
            with self.watch.timed("selection"):
                loss = self.selection.evaluate(step)
            self.watch.log(step, {"selection/loss": loss})


def _prepare_process(spec: TrainSpec) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not spec.train.use_gpu:
        torch.set_num_threads(max(1, int(spec.train.cpus_per_rank)))
    torch.manual_seed(spec.seed)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout by step, so that a resumed run draws what the calm one drew and no generator state has to be saved."""
    import torch

    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)
