"""Loops: a model that says the same again and again, usually until the token limit ends it.

Three signs:

- a repeated tail: the text ends in one block of characters, at least three times over (whole words or not, whatever the script);
- a counting tail: the same, at least six times, when every number is read as the same number ("21 x 2 = 42", "42 x 2 = 84", ...);
- poor in words: at least half of the text lies in stretches of 100 words with fewer than 15 distinct ones. A ratio over the whole text
  falls with its length even in good prose (Heaps' law); over a fixed window it does not (moving-average type-token ratio, Covington &
  McFall 2010, J. Quant. Linguistics 17). Half of the text, because a long and sound one may hold a table or a long sum.

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
MIN_DISTINCT_WORDS = 15
MIN_POOR_SHARE = 0.5
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
        or poor_share(text) >= MIN_POOR_SHARE
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


def poor_share(text: str, window: int = WINDOW_WORDS, min_distinct: int = MIN_DISTINCT_WORDS) -> float:
    """Return the share of words that lie in a stretch of `window` words with fewer than `min_distinct` distinct ones."""
    words = text.split()
    if len(words) < window:
        return 0.0
    counts = Counter(words[:window])
    poor, covered = 0, 0  # words in poor stretches so far; how far the last such stretch reaches
    for end in range(window, len(words) + 1):
        if len(counts) < min_distinct:
            poor += end - max(covered, end - window)
            covered = end
        if end < len(words):
            old, new = words[end - window], words[end]
            counts[new] += 1
            if counts[old] == 1:
                del counts[old]
            else:
                counts[old] -= 1
    return poor / len(words)


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
