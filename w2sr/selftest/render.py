"""The table of a selftest."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from w2sr.selftest.checks import Check


def render(found: Sequence[Check]) -> str:
    """Return the table that `w2sr selftest` prints, at most 100 columns wide."""
    rows = [["", "check", "compared", "difference", "allowed"]]
    for check in found:
        verdict = "-" if check.skipped else "ok" if check.passed else "FAIL"
        rows.append([verdict, check.name, check.what, _number(check.difference), _number(check.allowed)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, note in zip(rows, ["", *(check.note for check in found)]):
        lines.append("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
        lines += textwrap.wrap(note, 100, initial_indent="      ", subsequent_indent="      ")
    wrong = list(dict.fromkeys(check.name for check in found if not check.passed))
    return "\n".join([*lines, "", f"failed: {', '.join(wrong)}" if wrong else "all passed"])


def as_json(found: Sequence[Check]) -> dict[str, Any]:
    """Return the same as plain data; a difference without a value is null."""
    rows = []
    for check in found:
        values = dataclasses.asdict(check) | {"passed": check.passed}
        rows.append({key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()})
    return {"passed": all(check.passed for check in found), "checks": rows}


def _number(value: float) -> str:
    return "0" if value == 0 else "-" if not math.isfinite(value) else f"{value:.1e}" if value < 0.1 else f"{value:.3g}"
