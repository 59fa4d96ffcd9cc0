"""Which rows share a sequence: over any number of rows at once, in time that grows with their number and not its square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_LOOKED_AT = 1024  # lengths among which the last but one of a bin is looked for


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


def fill_bins(lengths: Indices, capacity: int) -> Bins:
    """Put every item into one bin of at most `capacity`: bin after bin, the longest that fits first, the last two so that it is full.

    That is first-fit decreasing, but for the last two items of a bin, which are looked up: two that fill it to the last place, if there are
    such. With lengths as of text there nearly always are, until few items are left. What bins look like depends on how many items there
    are of each length; items of one length take their places in the order they are given in, so another order makes other companions
    and as many bins. The work is in the kinds of bin, of which there are few, and not in items.
    """
    if not len(lengths):
        return Bins(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert 0 < lengths.min() <= lengths.max() <= capacity, f"items must have 1 to {capacity} tokens, got {lengths.min()} to {lengths.max()}"
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=capacity + 1)
    nexts = np.cumsum(counts) - counts  # of each length: the place in `order` of the next item that has none yet
    bin_of, num_bins = np.empty(len(lengths), dtype=np.int64), 0
    for kind, times in _kinds(counts, capacity):
        bins = np.arange(num_bins, num_bins + times)
        for length, number in kind.items():
            bin_of[nexts[length] : nexts[length] + number * times] = np.repeat(bins, number)
            nexts[length] += number * times
        num_bins += times
    by_bin = np.argsort(bin_of, kind="stable")
    return Bins(order[by_bin], np.cumsum(np.bincount(bin_of, minlength=num_bins)))


def _kinds(counts: Indices, capacity: int) -> Iterator[tuple[dict[int, int], int]]:
    """Yield kinds of bin, as {length: number of items}, and how many bins there are of each; `counts[n]` items of length n are used up."""
    lengths = np.flatnonzero(counts)  # a length whose items are used up stays for a while
    num_used = 0
    while len(lengths):
        kind: dict[int, int] = {}
        room = capacity
        while (fitting := _longest(counts, lengths, room)) >= 0:
            longest = int(lengths[fitting])
            taken = _last_two(counts, lengths[max(0, fitting + 1 - _LOOKED_AT) : fitting + 1], room) if room <= 2 * longest else None
            if taken is None:
                taken = [longest] * min(int(counts[longest]), max(1, room // longest - 2))
            for length in taken:
                kind[length] = kind.get(length, 0) + 1
                counts[length] -= 1
                room -= length
        more = min(int(counts[length]) // number for length, number in kind.items()) if kind else 0
        for length, number in kind.items():
            counts[length] -= more * number
            num_used += counts[length] == 0
        if 8 * num_used >= len(lengths):
            lengths, num_used = lengths[counts[lengths] > 0], 0
        if kind:
            yield kind, more + 1


def _longest(counts: Indices, lengths: Indices, room: int) -> int:
    """Return the place in `lengths` of the longest that fits `room` and has an item left; -1 if there is none."""
    stop = int(np.searchsorted(lengths, room, side="right")) if room else 0
    while stop:
        start = max(0, stop - 64)
        left = np.flatnonzero(counts[lengths[start:stop]])
        if len(left):
            return start + int(left[-1])
        stop = start
    return -1


def _last_two(counts: Indices, lengths: Indices, room: int) -> list[int] | None:
    """Return one or two lengths that fill `room` to the last place, of those there are most of; None if there are none."""
    if lengths[-1] == room:
        return [room]
    ones = lengths[np.minimum(counts[lengths], counts[room - lengths]) > 0]
    others = room - ones
    pairs = np.where(ones == others, counts[ones] // 2, np.minimum(counts[ones], counts[others]))
    if not len(pairs) or pairs.max() == 0:
        return None
    best = int(pairs.argmax())
    return [int(ones[best]), int(others[best])]
