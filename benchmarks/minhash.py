"""How fast two libraries make MinHash signatures of traces: rensa (which curation uses) and datasketch (if it is installed).

pip install datasketch && python benchmarks/minhash.py
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable

from w2sr.curation.duplicates import NUM_MINIMA, SHINGLE_WORDS, signatures_of

WORDS = [f"{one}{two}" for one in "abcdefghijklmnopqrst" for two in "aeiouy"]
NUM_TEXTS = 2000


def texts() -> list[str]:
    """Return made-up traces of 75 words."""
    rng = random.Random(0)
    return [" ".join(rng.choice(WORDS) for _ in range(75)) for _ in range(NUM_TEXTS)]


def by_datasketch(some: list[str]) -> None:
    """The same signatures with datasketch."""
    from datasketch import MinHash

    for text in some:
        words = text.split()
        sketch = MinHash(NUM_MINIMA, seed=1)
        sketch.update_batch([" ".join(words[start : start + SHINGLE_WORDS]).encode() for start in range(len(words) - SHINGLE_WORDS + 1)])


def main() -> None:
    """Print microseconds of processor time a text."""
    some = texts()
    rivals: dict[str, Callable[[list[str]], object]] = {"rensa": signatures_of}
    if importlib.util.find_spec("datasketch") is not None:
        rivals["datasketch"] = by_datasketch
    for name, make in rivals.items():
        make(some[:10])
        began = time.process_time()
        make(some)
        print(f"{name}: {1e6 * (time.process_time() - began) / len(some):.0f} us a text of 75 words, shingles included")


if __name__ == "__main__":
    main()
