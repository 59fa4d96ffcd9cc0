"""What one model did on one set of problems, and the per-problem values every figure is a mean of.

Everything that is reported of a model is a mean over problems of one value per problem. So one routine (intervals.py) gives every figure,
difference and ratio its interval, and two models are compared on the same resampled problems by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w2sr.records import Trace, Verification

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """What happened to each sample of each problem. Every array has the shape (problems, samples).

    A request that failed is a sample that was not solved: leaving it out would reward a model for crashing on hard problems.
    """

    prompt_ids: tuple[str, ...]
    correct: Bools
    unverifiable: Bools
    no_answer: Bools  # nothing in the text that reads as an answer; a truncated sample may or may not have one
    truncated: Bools  # the token limit ended it
    failed: Bools  # the engine gave no text, or the sample is missing
    tokens: Floats  # length of the answer; NaN where failed

    @property
    def num_problems(self) -> int:
        """Number of problems."""
        return len(self.correct)

    @property
    def num_samples(self) -> int:
        """Samples of each problem."""
        return int(self.correct.shape[1])


def outcomes_of(
    prompt_ids: Sequence[str], traces: Iterable[Trace], verdicts: Mapping[str, Verification], samples_per_prompt: int
) -> Outcomes:
    """Arrange traces and their verdicts (by trace id) as problems x samples, in the order of `prompt_ids`."""
    shape = (len(prompt_ids), samples_per_prompt)
    row_of = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
    correct, unverifiable, no_answer, truncated = (np.zeros(shape, dtype=bool) for _ in range(4))
    failed = np.ones(shape, dtype=bool)
    tokens = np.full(shape, np.nan)
    for trace in traces:
        place = row_of[trace.prompt_id], trace.sample_index
        if trace.finish_reason == "error":
            continue
        verdict = verdicts[trace.trace_id]
        failed[place] = False
        correct[place] = verdict.verdict == "correct"
        unverifiable[place] = verdict.verdict == "unverifiable"
        no_answer[place] = verdict.last_answer is None
        truncated[place] = trace.finish_reason == "length"
        tokens[place] = trace.num_tokens
    return Outcomes(tuple(prompt_ids), correct, unverifiable, no_answer, truncated, failed, tokens)


def avg_at_k(correct: Bools) -> Floats:
    """Return the share of solved samples of each problem; its mean over problems is avg@k, with k = samples."""
    share: Floats = correct.mean(axis=1)
    return share


def pass_at_k(correct: Bools, k: int) -> Floats:
    """Return the unbiased estimate, for each problem, that at least one of `k` samples is correct.

    With c of n samples correct it is 1 - C(n-c, k) / C(n, k): the share of the k-subsets of the samples that hold a correct one
    (Chen et al. 2021, arXiv 2107.03374, eq. 1). Written as the product of 1 - k/i over i = n-c+1..n it has no large binomials.
    """
    num_samples = correct.shape[1]
    assert 1 <= k <= num_samples, f"pass@{k} needs at least {k} samples of a problem, there are {num_samples}"
    all_wrong = np.concatenate([[1.0], np.cumprod(1.0 - k / np.arange(num_samples, 0, -1))])  # by c
    chances: Floats = 1.0 - all_wrong[correct.sum(axis=1)]
    return chances


def mean_tokens(outcomes: Outcomes) -> Floats:
    """Return the mean answer length of each problem in tokens, truncated answers included; 0 where every sample failed."""
    present = np.isfinite(outcomes.tokens)
    totals = np.where(present, outcomes.tokens, 0.0).sum(axis=1)
    means: Floats = totals / np.maximum(present.sum(axis=1), 1)
    return means


def values_of(outcomes: Outcomes, pass_k: Sequence[int]) -> dict[str, Floats]:
    """Return every reported figure as one value per problem, by name: "avg", "pass@4", "no_answer", "truncated", ..."""
    rates = {
        "no_answer": outcomes.no_answer,
        "truncated": outcomes.truncated,
        "unverifiable": outcomes.unverifiable,
        "failed": outcomes.failed,
    }
    return {
        "avg": avg_at_k(outcomes.correct),
        **{f"pass@{k}": pass_at_k(outcomes.correct, k) for k in pass_k},
        **{name: rate.mean(axis=1) for name, rate in rates.items()},
        "tokens": mean_tokens(outcomes),
    }


def pooled(values: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return the values of an arm from those of its students (one per training seed): their mean, problem by problem."""
    return {name: np.mean([student[name] for student in values], axis=0) for name in values[0]}
