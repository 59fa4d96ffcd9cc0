"""What a limit on the length of rows would lose, and of which prompts: hard prompts have long traces, so a limit takes them first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from w2sr.curation.facts import Bools, Facts
from w2sr.curation.pool import GOLD


def budget_report(facts: Facts, rates: npt.NDArray[np.float64], limits: Sequence[int], hard_pass_rate: float) -> dict[str, Any]:
    """Return what curate/budget.json holds: for each limit (tokens of a whole row, prefix included) how many traces are longer.

    Counted are complete traces of teachers and people; `truncated` are those that the teacher's own token limit had cut, whose length is
    unknown. A prompt is hard when at most `hard_pass_rate` of its traces are correct. Lengths are those that training counts.
    """
    traces = ~facts.of_source(GOLD) & ~facts.has("error")
    cut = facts.has("truncated")
    rate = rates[facts.prompt]
    with np.errstate(invalid="ignore"):
        hard = rate <= hard_pass_rate
    groups = {"all": traces, "hard": traces & hard, "correct": traces & facts.has("correct"), "hard_correct": traces & hard}
    groups["hard_correct"] = groups["hard_correct"] & facts.has("correct")
    length = facts.prefix + facts.tokens
    return {
        "hard_pass_rate": hard_pass_rate,
        "num_prompts": int(np.isfinite(rates).sum()),
        "num_hard_prompts": int((rates[np.isfinite(rates)] <= hard_pass_rate).sum()),
        "groups": {name: _group(rows, cut, length, sorted(set(limits))) for name, rows in groups.items()},
    }


def _group(rows: Bools, cut: Bools, length: npt.NDArray[np.int32], limits: Sequence[int]) -> dict[str, Any]:
    lengths = length[rows & ~cut]
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.99, 1]).tolist() if len(lengths) else [0.0] * 4
    return {
        "traces": int(rows.sum()),
        "truncated": int((rows & cut).sum()),
        "longer_than": {str(limit): int((lengths > limit).sum()) for limit in limits},
        "tokens": dict(zip(("median", "p90", "p99", "longest"), (round(value) for value in quantiles))),
    }
