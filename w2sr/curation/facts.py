"""What is remembered of every row of the pool between the two passes: numbers only, 47 bytes a row.

Texts are compared by hashes of 64 bits: among a million rows two different texts fall together with a chance of 1 in 37 million.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from w2sr.grading.numbers import parse_number

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Codes:
    """Short names as small numbers; 0 is "nothing"."""

    def __init__(self) -> None:
        self.names = [""]
        self._of: dict[str, int] = {"": 0}

    def __getitem__(self, name: str) -> int:
        """Return the number of a name; a new name gets the next one."""
        if name not in self._of:
            self._of[name] = len(self.names)
            self.names.append(name)
        return self._of[name]


class Rewrites:
    """What one way of rewriting made of every row: `refused`: it could not; `changed`; `tokens` as in Facts; `words` that were removed."""

    def __init__(self, num_rows: int) -> None:
        self.refused = np.zeros(num_rows, bool)
        self.changed = np.zeros(num_rows, bool)
        self.tokens = np.zeros(num_rows, np.int32)
        self.words = np.zeros(num_rows, np.int32)

    def some(self, rows: Ints) -> Rewrites:
        """Return those of some rows."""
        part = Rewrites(0)
        for name, values in vars(self).items():
            setattr(part, name, values[rows])
        return part


@dataclass
class Facts:
    """One entry for each row of the pool, in pool order.

    `rank` orders rows by seed; `outcome` is "correct", "wrong", "gold" or why there is nothing to judge ("truncated", "no_answer", ...);
    `defect` is why the row is unfit, or 0; `tokens` counts the supervised tokens (text and end), `prefix` those before them; `answer` is a
    hash of the final answer, 0 without one; `reasoning` words of reflection in a hundred; `rewrites` what each way of rewriting made of the
    rows. `text`, a hash, and `signature` [rows, 128] are
    there while texts are compared.
    """

    num_rows: int
    signatures: bool
    codes: Codes = field(default_factory=Codes)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = np.zeros(self.num_rows, np.int16)
        self.prompt = np.zeros(self.num_rows, np.int32)
        self.rank = np.zeros(self.num_rows, np.uint64)
        self.outcome = np.zeros(self.num_rows, np.int16)
        self.defect = np.zeros(self.num_rows, np.int16)
        self.tokens = np.zeros(self.num_rows, np.int32)
        self.prefix = np.zeros(self.num_rows, np.int32)
        self.text = np.zeros(self.num_rows, np.uint64)
        self.answer = np.zeros(self.num_rows, np.uint64)
        self.reasoning = np.zeros(self.num_rows, np.float32)
        self.accepted = np.zeros(self.num_rows, bool)
        self.rewrites: dict[str, Rewrites] = {}
        self.signature = np.zeros((self.num_rows if self.signatures else 0, 128), np.uint8)

    def some(self, rows: Ints) -> Facts:
        """Return the facts of some rows, in the order given."""
        part = Facts(len(rows), False, self.codes, self.sources)
        for name, values in vars(self).items():
            if isinstance(values, np.ndarray) and len(values) == self.num_rows:
                setattr(part, name, values[rows])
        part.rewrites = {kind: rewrites.some(rows) for kind, rewrites in self.rewrites.items()}
        return part

    def has(self, *outcomes: str) -> Bools:
        """Return which rows have one of these outcomes."""
        found: Bools = np.isin(self.outcome, [self.codes[outcome] for outcome in outcomes])
        return found

    def of_source(self, *names: str) -> Bools:
        """Return which rows come from one of these sources."""
        found: Bools = np.isin(self.source, [number for number, name in enumerate(self.sources) if name in names])
        return found


def rank_of(seed: int, row_id: str) -> int:
    """Return the place of a row in the order of `seed`: a function of the row, not of where it stands."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x1f{row_id}".encode()).digest()[:8], "big")


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def answer_hash(answer: str | None) -> int:
    """Return a hash under which equal answers fall together: numbers by value, other text without case and white space; 0: none."""
    if answer is None:
        return 0
    number = parse_number(answer)
    return text_hash(str(number) if number is not None else "".join(answer.split()).casefold()) or 1


def majority_answers(facts: Facts, rows: Bools, num_prompts: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """Return for each prompt the most frequent answer among `rows` and its share of them; 0 where two lead, or only one row answers."""
    chosen = np.flatnonzero(rows & (facts.answer != 0))
    leaders, shares = np.zeros(num_prompts, np.uint64), np.zeros(num_prompts)
    if not len(chosen):
        return leaders, shares
    pairs = np.empty(len(chosen), [("prompt", np.int32), ("answer", np.uint64)])
    pairs["prompt"], pairs["answer"] = facts.prompt[chosen], facts.answer[chosen]
    distinct, votes = np.unique(pairs, return_counts=True)
    order = np.lexsort((-votes, distinct["prompt"]))
    prompts, answers, votes = distinct["prompt"][order], distinct["answer"][order], votes[order]
    first = np.flatnonzero(np.r_[True, prompts[1:] != prompts[:-1]])
    second = np.minimum(first + 1, len(prompts) - 1)
    is_tied = (second != first) & (prompts[second] == prompts[first]) & (votes[second] == votes[first])
    leads = ~is_tied & (votes[first] > 1)
    leaders[prompts[first[leads]]] = answers[first[leads]]
    shares[prompts[first]] = votes[first] / np.add.reduceat(votes, first)
    return leaders, shares


def pass_rates(facts: Facts, num_prompts: int) -> npt.NDArray[np.float64]:
    """Return the share of each prompt's traces, of all teachers, that are correct; NaN where nothing could be judged.

    A truncated or unanswered trace counts as not correct: the teacher did not solve the prompt. Failed requests do not count.
    """
    counted = ~facts.of_source("gold", "human") & ~facts.has("error", "no_reference")
    total = np.bincount(facts.prompt[counted], minlength=num_prompts)
    right = np.bincount(facts.prompt[counted & facts.has("correct")], minlength=num_prompts)
    with np.errstate(invalid="ignore"):
        rates: npt.NDArray[np.float64] = right / total
    return rates
