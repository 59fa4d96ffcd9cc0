"""How numbers are written. Scores are percent, differences are points, an interval follows in brackets."""

from __future__ import annotations

from w2sr.evaluation.intervals import Estimate

ABOVE, BELOW, UNCLEAR = "▲", "▼", "≈"


def percent(estimate: Estimate) -> str:
    """Return "62.4 %"."""
    return f"{100 * estimate.value:.1f} %"


def interval(estimate: Estimate) -> str:
    """Return "[60.1, 64.9]", in percent."""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(estimate: Estimate) -> str:
    """Return a signed difference with its interval, "+17.3 [+14.1, +20.4]", in points."""
    return f"{_signed(estimate.value)} [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def mark(estimate: Estimate) -> str:
    """Return the sign of a difference that excludes 0, or the sign for "cannot tell"."""
    if not estimate.excludes_zero:
        return UNCLEAR
    return ABOVE if estimate.value > 0 else BELOW


def ratio(estimate: Estimate) -> str:
    """Return "71 % [64, 79]"."""
    text = f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    return text.replace("-", "−")


def p_value(value: float) -> str:
    """Return "0.032", or "< 0.0001"."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def size(number: int) -> str:
    """Return a number of parameters as "0.39 M" or "7.6 B"."""
    value, unit = (number / 1e9, "B") if number >= 1e9 else (number / 1e6, "M")
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f} {unit}"


def seconds(value: float) -> str:
    """Return "48 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(value)
    if whole < 100:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
