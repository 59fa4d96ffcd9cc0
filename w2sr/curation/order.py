"""Which rows come first where not all are taken. Every order is total and depends on the rows and the seed, not on where the rows stand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from w2sr.curation.config import Order
from w2sr.curation.duplicates import similarity
from w2sr.curation.facts import Facts, Ints

MAX_COMPARED = 20_000  # rows among which the diverse ones are sought, first by rank: each pick compares all of them
_DIFFICULTIES = (0.0, 1 / 3, 2 / 3, 1 - 1e-9, 1.0)  # never, seldom, often, mostly, always solved

Floats = npt.NDArray[np.float64]


def ordered(rows: Ints, order: Order, facts: Facts, rates: Floats) -> Ints:
    """Return `rows` in an order (see ArmConfig.order) other than diverse, which needs a number; `rates` are the prompts' pass rates.

    Rows of prompts on which nothing could be judged (NaN) come last where difficulty decides.
    """
    rank = facts.rank[rows]
    rate = rates[facts.prompt[rows]]
    if order == "hardest":
        return rows[np.lexsort((rank, np.nan_to_num(rate, nan=2.0)))]
    if order == "easiest":
        return rows[np.lexsort((rank, np.nan_to_num(-rate, nan=2.0)))]
    if order == "reasoning":
        return rows[np.lexsort((rank, -facts.reasoning[rows]))]
    rows = rows[np.argsort(rank, kind="stable")]
    if order == "balanced":
        level = np.digitize(np.nan_to_num(rates[facts.prompt[rows]], nan=2.0), _DIFFICULTIES, right=True)
        return rows[np.lexsort((level, nth(level)))]
    return rows


def most_diverse(rows: Ints, number: int, facts: Facts) -> Ints:
    """Return `rows` with `number` diverse ones first: the first by rank, then always the row that is least like every row taken.

    Greedy k-center (Gonzalez 1985, Theoretical Computer Science 38): its largest distance from a row left out to a row taken is at most
    twice the least possible. Distance is 1 - estimated Jaccard similarity of 3-word shingles. Sought among the first MAX_COMPARED rows by
    rank.
    """
    rows = rows[np.argsort(facts.rank[rows], kind="stable")]
    own = facts.signature[rows[:MAX_COMPARED]]
    taken = [0] if len(rows) else []
    nearest = similarity(own[0], own) if len(rows) else np.zeros(0)
    nearest[:1] = np.inf
    while len(taken) < min(number, len(own)):
        pick = int(np.argmin(nearest))
        taken.append(pick)
        np.maximum(nearest, similarity(own[pick], own), out=nearest)
        nearest[pick] = np.inf
    rest = np.ones(len(rows), bool)
    rest[taken] = False
    return np.concatenate([rows[taken], rows[rest]])


def nth(groups: Ints) -> Ints:
    """Return, for each entry, how many earlier entries have the same group."""
    order = np.argsort(groups, kind="stable")
    ordered_groups = groups[order]
    first = np.r_[True, ordered_groups[1:] != ordered_groups[:-1]] if len(groups) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(groups)), 0))
    found = np.empty(len(groups), np.int64)
    found[order] = np.arange(len(groups)) - starts
    return found


def interleaved(groups: Ints, shares: dict[int, float]) -> tuple[Ints, int]:
    """Return the places of rows in an order in which every beginning holds the groups in `shares`, and where the first group runs out.

    Beyond that place the shares cannot be kept. Up to it each group is within one row of its share (Webster's method of apportionment).
    """
    turn = nth(groups)
    share = np.array([shares[int(group)] for group in groups]) if len(groups) else np.zeros(0)
    key = (turn + 0.5) / share
    order = np.lexsort((groups, key))
    limit = min((int((groups == group).sum()) + 0.5) / weight for group, weight in shares.items())
    return order, int((key < limit).sum())
