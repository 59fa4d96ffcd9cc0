"""Near duplicates by MinHash, in a fixed 128 bytes a row.

A signature is the lowest 8 bits of each of 128 minima over the text's 3-word shingles (b-bit minwise hashing, Li and König 2010,
arXiv 0910.3349): two rows agree in a share s + (1 - s) / 256 of them, where s is their Jaccard similarity, with a standard error of at
most 4.5 points. The minima come from rensa: with the shingles nine times as fast as datasketch (benchmarks/minhash.py).

Rows are taken in the order given; a row is a near duplicate when it is similar to an earlier one that is not. So what is found does not
depend on the order in which traces were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from w2sr.curation.facts import Bools, Ints

NUM_MINIMA = 128
NUM_BANDS = 16  # of 8 minima each: a pair of similarity 0.8 shares one with a chance of 0.94, of 0.85 with 0.99, of 0.9 with 0.9999
SHINGLE_WORDS = 3
_CHANCE = 1 / 256

Signatures = npt.NDArray[np.uint8]


def signatures_of(texts: Sequence[str], seed: int = 0) -> Signatures:
    """Return the signatures of `texts`, [texts, 128]. White space and case do not count."""
    from rensa import RMinHash

    digests = RMinHash.digests_from_token_sets([_shingles(text) for text in texts], NUM_MINIMA, seed)
    return (np.asarray(digests, dtype=np.uint32).reshape(len(texts), NUM_MINIMA) & 0xFF).astype(np.uint8)


def similarity(one: Signatures, others: Signatures) -> npt.NDArray[np.float64]:
    """Return the estimated Jaccard similarity of one signature to each of `others`."""
    agreed = (others == one).mean(axis=1)
    estimated: npt.NDArray[np.float64] = np.clip((agreed - _CHANCE) / (1 - _CHANCE), 0, 1)
    return estimated


def near_duplicates(signatures: Signatures, order: Ints, groups: Iterable[Ints], threshold: float) -> Bools:
    """Return which of the rows `order`, taken in that order, almost repeat an earlier one of their group; [rows of order].

    Each of `groups` numbers the rows of `order`: rows with the same number are compared. With several, what one finds the next leaves out.
    """
    repeated = np.zeros(len(order), bool)
    for group in groups:
        for members in _with_company(group, repeated):
            _mark(signatures[order[members]], members, threshold, repeated)
    return repeated


def bands_of(signatures: Signatures, order: Ints) -> Iterator[Ints]:
    """Yield the 16 LSH bands of the rows `order`, as groups for `near_duplicates`: similar rows share at least one."""
    bands = signatures.view(np.int64)
    for number in range(NUM_BANDS):
        yield bands[order, number]


def repeats(keys: npt.NDArray[np.uint64]) -> Bools:
    """Return which entries are equal to an earlier one."""
    _, first = np.unique(keys, return_index=True)
    found = np.ones(len(keys), bool)
    found[first] = False
    return found


def _with_company(group: Ints, left_out: Bools) -> Iterator[Ints]:
    """Yield the row numbers of each group of at least two, in order."""
    rows = np.flatnonzero(~left_out)
    rows = rows[np.argsort(group[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(group[rows])) + 1
    starts = np.r_[0, ends]
    sizes = np.diff(np.r_[starts, len(rows)])
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1]):
        yield rows[start : start + size]


def _mark(own: Signatures, members: Ints, threshold: float, repeated: Bools) -> None:
    kept: list[int] = []
    for number in range(len(members)):
        if kept and similarity(own[number], own[kept]).max() >= threshold:
            repeated[members[number]] = True
        else:
            kept.append(number)


def _shingles(text: str) -> list[str]:
    words = text.casefold().split()
    return [" ".join(words[start : start + SHINGLE_WORDS]) for start in range(max(1, len(words) - SHINGLE_WORDS + 1))]
