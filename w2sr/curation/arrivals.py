"""The rows of a teacher's traces or verdicts, wave by wave, copied from a stage's folder while the stage is still at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from w2sr.teachers.requests import RequestPlan
from w2sr.traces.follower import Follower
from w2sr.traces.positions import Positions
from w2sr.traces.store import TraceStore

Row = TypeVar("Row")


class Arrivals(Generic[Row]):
    """Copies what is committed in `folder` of what `plan` asks for. `bounds`: as of prompts.waves.wave_bounds.

    `folder_of` gives the folder for the copy of a wave, which must not be there yet.
    """

    def __init__(
        self, folder: Path, row_type: type[Row], plan: RequestPlan, bounds: Sequence[int], folder_of: Callable[[int], Path]
    ) -> None:
        self._row_type = row_type
        self._plan = plan
        self._bounds = np.asarray(bounds) * plan.samples
        self._folder_of = folder_of
        self._follower = Follower(folder, row_type, Positions(plan.num_positions))
        asked = np.fromiter(plan.positions(), np.int64)
        self._missing = np.bincount(self._waves_of(asked), minlength=len(bounds) - 1)
        self._stores: dict[int, TraceStore[Row]] = {}

    def poll(self) -> None:
        """Copy what was committed since the last time. Raises UserError for a damaged file."""
        for rows in self._follower.poll():
            waves = self._waves_of(np.array([row.position for row in rows]))  # type: ignore[attr-defined]
            for wave in np.unique(waves).tolist():
                some = [row for row, number in zip(rows, waves, strict=True) if number == wave]
                self._store(wave).append(some)
                self._missing[wave] -= len(some)

    def is_whole(self, wave: int) -> bool:
        """Whether all rows of `wave` (from 0) were copied."""
        return bool(self._missing[wave] == 0)

    def finish(self, wave: int) -> None:
        """Make the copy of a whole wave readable as parts, in position order. Its folder is the caller's then."""
        with self._store(wave) as store:
            store.finish()
        del self._stores[wave]

    def close(self) -> None:
        """Let go of the waves that are not finished."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def _store(self, wave: int) -> TraceStore[Row]:
        if wave not in self._stores:
            # Never to be durable: the copies are thrown away with the process that makes them.
            folder = self._folder_of(wave)
            self._stores[wave] = TraceStore.open(folder, self._row_type, self._plan.num_positions, flush_interval_s=None)
        return self._stores[wave]

    def _waves_of(self, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.searchsorted(self._bounds, positions, side="right") - 1
        return found
