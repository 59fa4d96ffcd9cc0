"""Which texts hold a question of an evaluation set, by words in a row.

Texts become words (evalwords.py). A question's *evidence* is its words without boilerplate: runs of 5 words that stand in many questions
of the set ("state the final answer to the following arithmetic problem"). A text hits a question when they share `ngram_words` successive
words of evidence, or all of its evidence where that is less. How much of the evidence is found that way is the *coverage*; a hit counts
from a share that the configuration names. Hits are exact: hashes only find candidates.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = list[str]
WordIds = npt.NDArray[np.int64]

_BOILERPLATE_WORDS = 5
_BOILERPLATE_SHARE, _BOILERPLATE_ITEMS = 0.05, 10
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the rolling hash loses nothing
_FILTER_BITS = 20
_BREAK = -1  # between two texts; a word that no question has is 0


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A question of an evaluation set."""

    eval_set: str
    eval_id: str
    question: str


@dataclass(frozen=True, slots=True)
class Match:
    """A text and a question that share words. `coverage` is the share of the question's evidence that the text holds."""

    text: int
    item: int
    coverage: float
    words: str


class Index:
    """Finds the questions of `items` in texts. Memory grows with the questions, not with what is searched."""

    def __init__(self, items: Sequence[EvalItem], texts: Sequence[Words], tells: Callable[[str], bool], size: int, min_words: int) -> None:
        """`texts` are the questions as words; `tells(word)` is whether a word counts towards `min_words`; `size` words make an n-gram."""
        self._ids: dict[str, int] = {}
        boilerplate = _boilerplate(items, texts)
        self._items = [np.array([self._ids.setdefault(word, len(self._ids) + 1) for word in text], np.int64) for text in texts]
        self._words = ["", *self._ids]
        self._evidence = [0] * len(items)
        grams: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, text in enumerate(texts):
            runs = _runs(text, boilerplate[items[number].eval_set])
            self._evidence[number] = sum(stop - start for start, stop in runs)
            longest = max((stop - start for start, stop in runs), default=0)
            width = min(size, longest)
            if sum(tells(word) for start, stop in runs for word in text[start:stop]) >= min_words and width >= min(min_words, size):
                told = np.cumsum([0, *(tells(word) for word in text)])
                places = (place for start, stop in runs for place in range(start, stop - width + 1))
                grams[width] += [(number, place) for place in places if told[place + width] - told[place] >= width // 3]
        self._tables = [_Table(width, self._items, places) for width, places in sorted(grams.items()) if places]

    def find(self, texts: Sequence[Words]) -> list[Match]:
        """Return the hits of every text, given as words in the same way, in the order of texts and questions."""
        if not self._tables or not texts:
            return []
        stream, starts = self._stream(texts)
        covered: dict[tuple[int, int], set[int]] = defaultdict(set)
        for table in self._tables:
            for place, item, start in table.search(stream, self._items):
                text = int(np.searchsorted(starts, place, side="right")) - 1
                covered[text, item].update(range(start, start + table.width))
        return [self._match(text, item, places) for (text, item), places in sorted(covered.items())]

    def _stream(self, texts: Sequence[Words]) -> tuple[WordIds, WordIds]:
        """Return the word ids of all texts end to end, and where each begins."""
        known = self._ids.get
        ids: list[int] = []
        starts = []
        for text in texts:
            starts.append(len(ids))
            ids += [known(word, 0) for word in text]
            ids.append(_BREAK)
        return np.array(ids, np.int64), np.array(starts, np.int64)

    def _match(self, text: int, item: int, places: set[int]) -> Match:
        shown = " ".join(self._words[self._items[item][place]] for place in sorted(places))
        return Match(text, item, len(places) / self._evidence[item], shown if len(shown) <= 200 else shown[:199] + "…")


class _Table:
    """The n-grams of one width: sorted hashes with the item and place of each, behind a bit filter."""

    def __init__(self, width: int, items: list[WordIds], places: list[tuple[int, int]]) -> None:
        self.width = width
        hashes = np.array([_hashes(items[item][place : place + width], width)[0] for item, place in places], np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._places = np.array(places, np.int64)[order]
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[_slot(hashes)] = True

    def search(self, stream: WordIds, items: list[WordIds]) -> Iterable[tuple[int, int, int]]:
        """Yield (place in the stream, item, place in the item) of every n-gram found."""
        if len(stream) < self.width:
            return
        hashes = _hashes(stream, self.width)
        for place in np.flatnonzero(self._filter[_slot(hashes)]):
            window = stream[place : place + self.width]
            at = int(np.searchsorted(self._hashes, hashes[place]))
            while at < len(self._hashes) and self._hashes[at] == hashes[place]:
                item, start = (int(value) for value in self._places[at])
                if np.array_equal(window, items[item][start : start + self.width]):
                    yield int(place), item, start
                at += 1


def _hashes(ids: WordIds, width: int) -> npt.NDArray[np.uint64]:
    """Return a hash of each window of `width` ids."""
    values = ids.astype(np.uint64)
    count = len(ids) - width + 1
    found = np.zeros(count, np.uint64)
    for offset in range(width):
        found = found * _BASE + values[offset : offset + count]
    return found


def _slot(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    # The low bits of the rolling hash know only the low bits of the ids; mix before cutting.
    mixed = (hashes ^ (hashes >> np.uint64(29))) * _BASE
    return (mixed >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _boilerplate(items: Sequence[EvalItem], texts: Sequence[Words]) -> dict[str, set[tuple[str, ...]]]:
    """Return, for each set, the runs of 5 words that stand in at least 5 % of its questions, and in 10."""
    of_set: dict[str, list[Words]] = defaultdict(list)
    for item, text in zip(items, texts, strict=True):
        of_set[item.eval_set].append(text)
    found = {}
    for name, questions in of_set.items():
        counts = Counter(gram for text in questions for gram in {*_grams(text)})
        least = max(_BOILERPLATE_ITEMS, _BOILERPLATE_SHARE * len(questions))
        found[name] = {gram for gram, number in counts.items() if number >= least}
    return found


def _grams(text: Words) -> Iterable[tuple[str, ...]]:
    return (tuple(text[start : start + _BOILERPLATE_WORDS]) for start in range(len(text) - _BOILERPLATE_WORDS + 1))


def _runs(text: Words, boilerplate: set[tuple[str, ...]]) -> list[tuple[int, int]]:
    """Return (start, stop) of the stretches that are not boilerplate."""
    tells = np.ones(len(text), np.int8)
    for place, gram in enumerate(_grams(text)):
        if gram in boilerplate:
            tells[place : place + _BOILERPLATE_WORDS] = 0
    edges = np.flatnonzero(np.diff(tells, prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
