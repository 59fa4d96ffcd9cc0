"""The diagnosis as text for a console."""

from __future__ import annotations

from w2sr.diagnosis.agreement import Agreement, Diversity
from w2sr.diagnosis.diagnose import Diagnosis
from w2sr.diagnosis.means import Mean
from w2sr.diagnosis.rates import CONFIDENCE, Rate
from w2sr.diagnosis.tally import TeacherDiagnosis

_RATES = {
    "format_valid": "format-valid (ended by itself, with a final answer)",
    "failed": "failed requests",
    "truncated": "truncated by the token limit",
    "no_answer": "no final answer",
    "loop": "loops",
    "stray_script": "stray script (language mix)",
    "empty": "empty",
    "duplicate_in_prompt": "duplicates of the same prompt",
    "duplicate_across_prompts": "duplicates of another prompt",
}
_DIVERSITY = {
    "solved_by_any": "prompts solved by any sample",
    "distinct_answers": "distinct answers / answers of a prompt",
    "majority": "share of a prompt's most frequent answer",
    "distinct_bigrams": "distinct word pairs / word pairs of a prompt",
}
_AGREEMENT = {
    "same_answer": "same final answer",
    "both": "both correct",
    "only_first": "only {first} correct",
    "only_second": "only {second} correct",
    "neither": "neither correct",
    "solved_by_any": "solved by either",
    "shared_bigrams": "word pairs in common",
}


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the tables that `w2sr diagnose` prints. In brackets: 95 % intervals."""
    blocks = [_teachers(diagnosis), *(_shape(found) for found in diagnosis.teachers)]
    for (first, second), found in diagnosis.comparison.agreement.items():
        blocks.append(_pair(first, second, found))
    if diagnosis.comparison.agreement and diagnosis.comparison.solved_by_any.count:
        blocks.append(f"solved by any teacher: {_mean(diagnosis.comparison.solved_by_any)}")
    blocks.append("\n".join([*diagnosis.notes, *_verdict(diagnosis)]))
    return "\n\n".join(blocks)


def _teachers(diagnosis: Diagnosis) -> str:
    rows = [["", *(f"{found.teacher}" for found in diagnosis.teachers)]]
    rows.append(["requests", *(f"{found.requests:,}" + ("" if found.complete else " so far") for found in diagnosis.teachers)])
    rows.append(["accuracy", *("not verified" if found.accuracy is None else _rate(found.accuracy) for found in diagnosis.teachers)])
    rows += [[text, *(_rate(found.rates[name]) for found in diagnosis.teachers)] for name, text in _RATES.items()]
    diversities = [diagnosis.comparison.diversity.get(found.teacher, Diversity()) for found in diagnosis.teachers]
    for name, text in _DIVERSITY.items():
        means = [getattr(diversity, name) for diversity in diversities]
        if any(mean.count for mean in means):
            rows.append([text, *(_mean(mean) for mean in means)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, f"In brackets: {100 * CONFIDENCE:g} % intervals. Rates but format-valid and failed are of the traces that did not fail."]
    )


def _shape(found: TeacherDiagnosis) -> str:
    lengths = found.lengths
    lines = [
        f"{found.teacher}: {lengths.unit} of a trace: mean {lengths.mean:,.1f}, median {lengths.median:,}, p90 {lengths.p90:,}, "
        f"p99 {lengths.p99:,}, max {lengths.max:,}",
        f"  0 |{lengths.bars()}| {lengths.max:,}",
    ]
    if found.failures:
        lines.append("  failures: " + "; ".join(f"{number:,} {kind}" for kind, number in found.failures.items()))
    if found.scripts:
        lines.append("  scripts: " + ", ".join(f"{script} in {number:,}" for script, number in found.scripts.items()))
    for name, what in (("not_format_valid", "not format-valid"), ("loop", "loops"), ("stray_script", "stray script")):
        if found.examples.get(name):
            lines.append(f"  {what}, for example: {' '.join(found.examples[name])}")
    return "\n".join(lines)


def _pair(first: str, second: str, found: Agreement) -> str:
    lines = [f"{first} and {second}, on the {found.same_answer.count:,} prompts that both answered:"]
    for name, text in _AGREEMENT.items():
        mean = getattr(found, name)
        if mean.count:
            lines.append(f"  {text.format(first=first, second=second)}: {_mean(mean)}")
    return "\n".join(lines)


def _verdict(diagnosis: Diagnosis) -> list[str]:
    reasons = [reason for found in diagnosis.teachers for reason in diagnosis.gate[found.teacher]]
    if reasons:
        return [f"gate: would stop. {reason}" for reason in reasons]
    return ["gate: passed (generate.gate)"]


def _rate(rate: Rate) -> str:
    low, high = rate.interval()
    return f"{100 * rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" if rate.total else "–"


def _mean(mean: Mean) -> str:
    low, high = mean.interval()
    return f"{100 * mean.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" if mean.count else "–"
