"""The selection split during a training: its loss, and what follows from it. The test split has no say here.

What is evaluated is what would be exported: the averaged weights where an average is kept. Every decision is a function of the evaluations
so far, which are the same numbers on every rank and a part of every checkpoint, so a training that was killed decides as a calm one.

The weights of the best evaluation lie in `best/step-N`, shard by shard in fp32, complete by a rename. What the newest checkpoint calls the
best stays until a newer checkpoint is whole: a training that goes back to it finds its best weights too.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from w2sr.errors import UserError
from w2sr.tables import sync_folder, sync_tree
from w2sr.training.average import WeightAverage
from w2sr.training.data import load_rows
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.engine_shards import read_shards, write_shards
from w2sr.training.feed import Feed
from w2sr.training.objective import Objective
from w2sr.training.selection_config import SelectionConfig
from w2sr.training.spec import TrainSpec
from w2sr.training.writing import Writer

BEST = "best"
STATE = "selection.pt"


@dataclass(frozen=True)
class Evaluations:
    """What was seen of the selection split: (step, loss in nats a token), ascending. Step 0, the untrained student, is never chosen."""

    rows: tuple[tuple[int, float], ...] = ()

    def best(self, min_gain: float) -> int | None:
        """Return the step of the last evaluation whose loss was more than `min_gain` below the best one's before; None if there is none."""
        return self._gains(min_gain)[0]

    def num_without_gain(self, min_gain: float) -> int:
        """Return how many evaluations there were since the best one."""
        return self._gains(min_gain)[1]

    def _gains(self, min_gain: float) -> tuple[int | None, int]:
        best, lowest, num_without = None, float("inf"), 0
        for step, loss in self.rows:
            if step == 0:
                continue
            # One that is not finite never gains; a first one that is always does.
            if loss < lowest - min_gain and loss > -float("inf"):
                best, lowest, num_without = step, loss, 0
            else:
                num_without += 1
        return best, num_without


class Selection:
    """Evaluates the selection rows of `spec`, if it has any, and keeps the best weights where train.selection.export asks for them.

    Raises UserError when train.selection decides and there are no rows.
    """

    def __init__(self, spec: TrainSpec, group: Group, engine: Engine, objective: Objective, feed: Feed, average: WeightAverage) -> None:
        check_rows(spec.train.selection, spec.selection_rows is not None)
        self._config = spec.train.selection
        self._rows = None if spec.selection_rows is None else load_rows(Path(spec.selection_rows))
        self._group, self._engine, self._objective, self._feed, self._average = group, engine, objective, feed, average
        self._folder = Path(spec.output) / BEST
        self._seen = Evaluations()
        self._saved: list[int | None] = [None, None]  # the best of the last two checkpoints: one of them is the newest whole one

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether the split is evaluated after `step` optimizer steps of `num_steps`."""
        every = self._config.every
        return self._rows is not None and (step in (0, num_steps) or (every is not None and step % every == 0))

    @property
    def is_over(self) -> bool:
        """Whether the training has seen so many evaluations without a gain that it ends here; not before there is what is exported."""
        patience = self._config.patience
        return patience is not None and self._average.has_begun and self._seen.num_without_gain(self._config.min_gain) >= patience

    def evaluate(self, step: int) -> float:
        """Return the loss after `step` optimizer steps, having drawn the conclusions; every rank calls it."""
        with self._average.in_place():
            loss = float(self._group.from_rank_zero(self._loss()))
            self._seen = Evaluations((*self._seen.rows, (step, loss)))
            if self._config.export == "best" and self._best == step:
                self._keep(step)
        return loss

    def put_in_place(self, step: int) -> int:
        """Give the model the weights that are exported, the training being over after `step`; return the step they are of; collective."""
        if self._config.export == "last":
            self._average.put_in_place()
            return step
        best = self._best
        if best is None:
            raise UserError(
                "train.selection.export=best: no evaluation of the selection split gave a finite loss, so there is no best student; lower "
                "train.learning_rate, or export the last weights (train.selection.export=last)"
            )
        read_shards(self._engine.shards(), self._folder / _name(best))
        self._engine.publish()
        return best

    def write(self, folder: Path, rank: int, writer: Writer) -> None:
        """Give the evaluations to `writer`, for a checkpoint in `folder`; every rank calls it. Older best weights may go."""
        self._saved = [self._saved[1], self._best]
        if rank == 0:
            writer.write({"rows": self._seen.rows}, folder / STATE)

    def read(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`. Raises UserError when the weights that it calls the best are gone."""
        import torch

        rows = torch.load(folder / STATE, weights_only=True)["rows"]
        self._seen = Evaluations(tuple((step, loss) for step, loss in rows))
        self._saved = [self._best, self._best]
        if self._config.export == "best" and self._best is not None and not (self._folder / _name(self._best)).is_dir():
            raise UserError(
                f"{self._folder / _name(self._best)} is gone, the weights with the best selection loss so far; restore it, or remove "
                f"{folder.parent} to train from the first step again"
            )

    @property
    def _best(self) -> int | None:
        return self._seen.best(self._config.min_gain)

    def _loss(self) -> float:
        """Return the mean NLL of the supervised tokens, in nats; every rank calls it."""
        assert self._rows is not None
        nll = 0.0
        with self._engine.evaluating():
            for batch in self._feed.selection(self._rows):
                nll += self._objective.selection_nll(self._engine, batch)
        (total,) = self._group.sum([nll])
        return total / self._rows.num_supervised

    def _keep(self, step: int) -> None:
        """Keep the weights that the model has, as the best ones; collective."""
        final, aside = self._folder / _name(step), self._folder / f".{_name(step)}.aside"
        if self._group.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._group.barrier()
        write_shards(self._engine.shards(), aside, self._group.rank, Writer(in_background=False))
        sync_tree(aside)
        self._group.barrier()
        if self._group.rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
            sync_folder(self._folder)
            kept = {_name(best) for best in (step, *self._saved) if best is not None}
            for path in self._folder.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path)
        self._group.barrier()


def check_rows(config: SelectionConfig, has_rows: bool) -> None:
    """Raise UserError when the selection split has no rows and yet shall decide."""
    if config.decides and not has_rows:
        raise UserError(
            "train.selection.patience and train.selection.export=best choose by the loss on the selection split, and there are no rows for "
            "it: no prompt of prompts/selection.parquet has a reference trace that the student can read. Give the selection prompts "
            "reference traces, or leave both out"
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"
