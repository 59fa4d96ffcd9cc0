"""Loops: a model that says the same again and again, usually until the token limit ends it.

Three signs:

- a repeated tail: the text ends in one block of characters, at least three times over (whole words or not, whatever the script);
- a counting tail: the same, at least six times, when every number is read as the same number ("21 x 2 = 42", "42 x 2 = 84", ...);
- a poor stretch: somewhere 100 words with fewer than 15 distinct ones. A ratio over the whole text falls with its length even in good prose
  (Heaps' law); over a fixed window it does not (moving-average type-token ratio, Covington & McFall 2010, J. Quant. Linguistics 17).

How often sound text is called a loop, and how many loops are found, was measured on real traces: docs/diagnose.md.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

MIN_REPEATS = 3
MIN_TAIL_CHARS = 80
MIN_COUNTING_REPEATS = 6
MIN_COUNTING_CHARS = 150
WINDOW_WORDS = 100
MIN_DISTINCT = 0.15
_PROBE_CHARS = 32
_MAX_PROBES = 64
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class Tail:
    """A block of `period` characters that the text repeats up to its end, `length` characters in all."""

    period: int
    length: int

    @property
    def repeats(self) -> float:
        """How often the block occurs; the last time perhaps in part."""
        return self.length / self.period


def is_loop(text: str) -> bool:
    """Return whether `text` shows one of the three signs of a loop (see above)."""
    return (
        _repeats(text, MIN_REPEATS, MIN_TAIL_CHARS)
        or _repeats(_NUMBER.sub("0", text), MIN_COUNTING_REPEATS, MIN_COUNTING_CHARS)
        or lowest_distinct_ratio(text) < MIN_DISTINCT
    )


def repeated_tail(text: str) -> Tail | None:
    """Return the repeated block that covers most of the end of `text`, or None when its last 32 characters occur nowhere before.

    White space at the end is not counted. A text that breaks off within the block counts as repeating it.
    """
    text = text.rstrip()
    probe = text[-_PROBE_CHARS:]
    best: Tail | None = None
    found = len(text) - len(probe)
    for _ in range(_MAX_PROBES):
        # Where the last characters occurred before; the occurrence may overlap the end itself, as in "aaaa".
        found = text.rfind(probe, 0, found + len(probe) - 1) if probe else -1
        if found < 0:
            break
        period = len(text) - len(probe) - found
        length = period + _common_suffix(text, len(text) - period)
        if best is None or length > best.length:
            best = Tail(period, length)
        if best.repeats >= MIN_REPEATS:
            break  # with fewer the block may be a part of a longer one: "ABB ABB ABB"
    return best


def lowest_distinct_ratio(text: str, window: int = WINDOW_WORDS) -> float:
    """Return the smallest share of distinct words in any `window` successive words; 1.0 for a text with fewer words than that."""
    words = text.split()
    if len(words) < window:
        return 1.0
    counts = Counter(words[:window])
    lowest = len(counts)
    for old, new in zip(words, words[window:]):
        counts[new] += 1
        if counts[old] == 1:
            del counts[old]
        else:
            counts[old] -= 1
        lowest = min(lowest, len(counts))
    return lowest / window


def unique_word_ratio(text: str) -> float:
    """Return the number of distinct words over the number of words; 1.0 for a text without words."""
    words = text.split()
    return len(set(words)) / len(words) if words else 1.0


def _repeats(text: str, min_repeats: int, min_chars: int) -> bool:
    tail = repeated_tail(text)
    return tail is not None and tail.repeats >= min_repeats and tail.length >= min_chars


def _common_suffix(text: str, end: int) -> int:
    """Return how many last characters of `text` and of `text[:end]` agree: blocks of doubling, then halving size are compared."""
    size, agreed, step, growing = len(text), 0, _PROBE_CHARS, True
    while step:
        fits = agreed + step <= end
        if fits and text[size - agreed - step : size - agreed] == text[end - agreed - step : end - agreed]:
            agreed += step
            step = step * 2 if growing else step // 2
        else:
            growing = False
            step //= 2
    return agreed
