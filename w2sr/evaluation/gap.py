"""How much of a gap was closed: two ratios that are easily confused, under names that cannot be.

    rgr_vs_student_base = (w2s - student_base) / (ceiling - student_base)     "Reasoning Gap Recovered" from the untuned student
    pgr_vs_teacher      = (w2s - teacher)      / (ceiling - teacher)          "performance gap recovered" from the weak teacher

(W2SR, arXiv 2505.20072; weak-to-strong generalisation, arXiv 2312.09390.) Both are plug-in ratios of means over the same problems, with a
paired bootstrap interval. A ratio whose denominator is not clearly above 0 is refused: it would be noise divided by noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.evaluation.intervals import Bootstrap, Estimate


@dataclass(frozen=True)
class GapRatio:
    """A ratio, or the reason why there is none (then `ratio` is None)."""

    ratio: Estimate | None
    gap: Estimate  # the denominator: ceiling minus floor
    refusal: str | None


def gap_ratio(bootstrap: Bootstrap, model: str, floor: str, ceiling: str) -> GapRatio:
    """Return (model - floor) / (ceiling - floor), all three columns of `bootstrap`; refused when the gap's interval reaches down to 0."""
    gap = bootstrap.difference(ceiling, floor)
    if gap.low <= 0:
        where = "covers 0" if gap.high >= 0 else "lies below 0"
        shown = f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]".replace("-", "−")
        return GapRatio(None, gap, f"the gap's interval {where}: {shown}; a share of it would be noise")
    value = (bootstrap.value(model) - bootstrap.value(floor)) / gap.value
    base = bootstrap.draws(floor)
    draws = (bootstrap.draws(model) - base) / (bootstrap.draws(ceiling) - base)
    return GapRatio(bootstrap.estimate(value, draws), gap, None)
