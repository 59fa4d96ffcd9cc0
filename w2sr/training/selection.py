"""The selection split during a training: its loss, and what follows from it. The test split has no say here."""

from __future__ import annotations

from pathlib import Path

from w2sr.training.data import load_rows
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.feed import Feed
from w2sr.training.objective import Objective
from w2sr.training.spec import TrainSpec


class Selection:
    """Evaluates the selection rows of `spec`, if it has any."""

    def __init__(self, spec: TrainSpec, group: Group, engine: Engine, objective: Objective, feed: Feed) -> None:
        self._rows = None if spec.selection_rows is None else load_rows(Path(spec.selection_rows))
        self._group, self._engine, self._objective, self._feed = group, engine, objective, feed

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether the split is evaluated after `step` optimizer steps of `num_steps`."""
        return self._rows is not None and step in (0, num_steps)

    def loss(self) -> float:
        """Return the mean NLL of the supervised tokens, in nats; every rank calls it."""
        assert self._rows is not None
        nll = 0.0
        with self._engine.evaluating():
            for batch in self._feed.selection(self._rows):
                nll += self._objective.selection_nll(self._engine, batch)
        (total,) = self._group.sum([nll])
        return total / self._rows.num_supervised
