"""Which rows share a sequence: best-fit decreasing over any number of rows, in time that grows with their number and not its square."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Bins end to end: `members` are numbers of items, bin after bin; `ends` says where each bin ends in it."""

    members: Indices
    ends: Indices

    def __len__(self) -> int:
        return len(self.ends)

    def split(self) -> list[Indices]:
        """Return the members of each bin."""
        return np.split(self.members, self.ends[:-1])


def best_fit(lengths: Indices, capacity: int) -> Bins:
    """Put every item into one bin of at most `capacity`: longest first, each into the fullest bin that still has room for it.

    Items of one length take their places in the order they are given in, so another order makes other companions and as many bins.

    The classical heuristic (D. S. Johnson, 1973: at most 11/9 of the fewest bins, and a constant), done for all items of a length at once:
    the fullest bin with room for them stays the fullest while they go into it, so bins of the same free room take `room // length` each.
    Bins are kept by free room; the work is in the pairs of length and free room that meet, not in items.
    """
    if not len(lengths):
        return Bins(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert 0 < lengths.min() <= lengths.max() <= capacity, f"items must have 1 to {capacity} tokens, got {lengths.min()} to {lengths.max()}"
    order = np.argsort(-lengths, kind="stable")
    bins, num_bins = _assign(lengths[order], capacity)
    members = order[np.argsort(bins, kind="stable")]
    return Bins(members, np.cumsum(np.bincount(bins, minlength=num_bins)))


def _assign(lengths: Indices, capacity: int) -> tuple[Indices, int]:
    """Return the bin of each item, of descending lengths, and the number of bins."""
    bin_of = np.empty(len(lengths), dtype=np.int64)
    rooms: list[int] = []  # ascending: the free rooms that some bin has
    with_room: dict[int, list[Indices]] = {}
    num_bins = 0

    def free(bins: Indices, room: int) -> None:
        if room and len(bins):
            if room not in with_room:
                insort(rooms, room)
                with_room[room] = []
            with_room[room].append(bins)

    starts = np.flatnonzero(np.diff(lengths, prepend=0))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(lengths)]):
        length = int(lengths[start])
        while start < stop:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                bins = with_room[room].pop()
                if not with_room[room]:
                    del with_room[room], rooms[place]
            else:
                room = capacity
                bins = np.arange(num_bins, num_bins - (start - stop) // (room // length))
                num_bins += len(bins)
            each = room // length
            used = min(len(bins), -((start - stop) // each))
            rest = min(stop - start, used * each) - (used - 1) * each  # of the last bin that is used
            bin_of[start : start + (used - 1) * each + rest] = np.repeat(bins[:used], each)[: (used - 1) * each + rest]
            start += (used - 1) * each + rest
            free(bins[used:], room)
            free(bins[: used - 1], room - each * length)
            free(bins[used - 1 : used], room - rest * length)
    return bin_of, num_bins
