"""Our verdicts beside those of plain math-verify on the same pairs, and every disagreement.

    python -m benchmarks.verify_agreement [--pairs 20000] [--seed 7]

Pairs are made from MATH-500's golds as in answer_pairs.py; equal ones count once. "ours" is what Grader gives (proof where possible, else
math-verify in a killable process); "plain" is math_verify.verify(parse(gold), parse(answer)) with its own settings. Answers that end in a
full stop, which plain math-verify mostly refuses, are counted, and listed only where the verdicts differ without the stop too.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.answer_pairs import golds, math_like_pairs
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.grading.graders import Question, judge_cheaply


@lru_cache(maxsize=1 << 15)
def parsed(text: str) -> Any:
    from math_verify import parse

    return parse(f"\\boxed{{{text.strip().strip('$')}}}")


def plain_verdict(answer: str, reference: str) -> bool:
    from math_verify import verify

    return bool(verify(parsed(reference), parsed(answer)))


def cause(reference: str) -> str:
    """Return what is known about such a disagreement."""
    if "_" in reference:
        return "the base of a numeral"
    if "text" in reference or "mbox" in reference or "circ" in reference:
        return "a unit or a word"
    return "other"


def main() -> None:
    """Compare and print."""
    logging.disable(logging.WARNING)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=7)
    given = arguments.parse_args()
    pairs = sorted(set(math_like_pairs(given.pairs, given.seed, golds("math500"))))
    with Grader(VerifyConfig()) as grader:
        ours = grader.judge(Question("math", *pair) for pair in pairs)
    table: Counter[tuple[str, bool]] = Counter()
    stops = 0
    odd: dict[str, list[str]] = defaultdict(list)
    for answer, reference in pairs:
        judgement = ours[Question("math", answer, reference)]
        plain = plain_verdict(answer, reference)
        if (judgement.verdict == "correct") != plain and answer.endswith("."):
            stops += 1
            plain = plain_verdict(answer[:-1], reference)
        table[judgement.verdict, plain] += 1
        if (judgement.verdict == "correct") != plain:
            how = "proven" if judge_cheaply(Question("math", answer, reference)) is not None else "by math-verify"
            other = "correct" if plain else "incorrect"
            line = f"{answer!r} for {reference!r}: ours {judgement.verdict} ({judgement.reason}, {how}), plain {other}"
            odd[cause(reference)].append(line)
    print(f"{len(pairs):,} different pairs; {stops:,} with a full stop at the end, on which plain was asked again without it")
    for (verdict, plain), count in sorted(table.items()):
        print(f"ours {verdict}, plain {'correct' if plain else 'incorrect'}: {count:,}")
    for name, lines in sorted(odd.items()):
        print(f"\n## {name}: {len(lines)}\n")
        print("\n".join(f"- {line}" for line in lines))


if __name__ == "__main__":
    main()
