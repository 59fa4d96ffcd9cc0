"""Plain numbers as people write them, compared exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_CHARS = 100  # longer digit strings are no plain numbers; it also bounds the cost of a comparison
_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,2})?", re.ASCII)
_RATIO = re.compile(r"([+-]?\d+) ?/ ?(\d+)", re.ASCII)
_LATEX_RATIO = re.compile(r"([+-]?)\\[dt]?frac ?\{(-?\d+)\} ?\{(\d+)\}", re.ASCII)
_DOLLARS = re.compile(r"\$([^$]*)\$|\\?\$(.*)", re.DOTALL)


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of a plain number, or None for anything else.

    Understood: signs, thousands separators (1,200), decimals (8.0, .5), exponents (1e5), ratios (1/2, \frac{1}{2}), a dollar sign or math
    dollars around it, a full stop behind it. Not understood, on purpose: percent signs and units.
    """
    if len(text) > _MAX_CHARS:
        return None
    text = text.strip()
    dollars = _DOLLARS.fullmatch(text)
    if dollars:
        text = (dollars[1] if dollars[1] is not None else dollars[2]).strip()
    text = text.removesuffix(".").replace("\u2212", "-")
    if _DECIMAL.fullmatch(text) and any(character.isdigit() for character in text.partition("e")[0].partition("E")[0]):
        return Fraction(text.replace(",", ""))
    ratio = _RATIO.fullmatch(text)
    if ratio and int(ratio[2]):
        return Fraction(int(ratio[1]), int(ratio[2]))
    ratio = _LATEX_RATIO.fullmatch(text)
    if ratio and int(ratio[3]):
        return Fraction(int(ratio[2]), int(ratio[3])) * (-1 if ratio[1] == "-" else 1)
    return None
