"""Realistic (answer, reference) pairs made from the gold answers of real data sets; seeded. Used by the verify benchmarks and tests."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

DATA = Path(os.environ.get("W2SR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

_SIMPLE_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")
_WHOLE = re.compile(r"-?\d+")


def golds(name: str) -> list[str]:
    """Return the gold answers of gsm8k/test, math500, amc23 or aime24 as a run stores them."""
    from w2sr.grading.extract import reference_answer

    path = DATA / ("gsm8k/test.jsonl" if name == "gsm8k" else f"eval/{name}.jsonl")
    return [reference_answer(str(json.loads(line)["answer"])) for line in path.read_text(encoding="utf-8").splitlines()]


def _is_whole(gold: str) -> bool:
    return _WHOLE.fullmatch(gold) is not None


def in_dollars(gold: str) -> str:
    r"""`$\dfrac{1}{2}$`"""
    return f"${gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}$"


def spaced(gold: str) -> str:
    r"""`\left( 3 , 4 \right)`, `x + 1`; whole numbers with separators of thousands."""
    if _is_whole(gold):
        return f"{int(gold):,}"
    text = re.sub(r"(?<!\\left)(?<!\\)([(\[])", r"\\left\1 ", gold)
    text = re.sub(r"(?<!\\right)(?<!\\)([)\]])", r" \\right\1", text)
    return text if text.count("\\left") == text.count("\\right") and "text" not in gold and "sqrt[" not in gold else f" {gold} "


def plainer(gold: str) -> str:
    r"""`1/2` for `\frac{1}{2}`, `42.0` for `42`, `90 degrees` for `90^\circ`, `Evelyn` for `\text{Evelyn}`."""
    if _is_whole(gold):
        return f"{gold}.0"
    whole = _SIMPLE_FRACTION.fullmatch(gold)
    if whole:
        return f"{whole[1]}{whole[2]}/{whole[3]}"
    word = re.fullmatch(r"\\text\{([^{}]*)\}", gold)
    return word[1] if word else gold.replace("^\\circ", " degrees")


def assigned(gold: str) -> str:
    """`x = 42`; a sentence's full stop where something is assigned already, or where it is a word."""
    return f"{gold}." if "=" in gold or "\\in" in gold or "text" in gold or "," in gold else f"x = {gold}"


def tight(gold: str) -> str:
    r"""No spaces, `\tfrac`, trailing full stop."""
    text = re.sub(r"(?<![A-Za-z}]) +| +(?![A-Za-z])", "", gold) if "text" not in gold and "mbox" not in gold else gold
    return text.replace("\\frac", "\\tfrac") + "."


WAYS: tuple[Callable[[str], str], ...] = (in_dollars, spaced, plainer, assigned, tight)


def mutated(gold: str, draw: random.Random) -> str:
    """Return a plausible wrong answer: one number changed, a sign lost, the parts of a fraction or of a pair swapped."""
    numbers = list(re.finditer(r"\d+", gold))
    kind = draw.randrange(4)
    fraction = _SIMPLE_FRACTION.search(gold)
    if kind == 0 and fraction and fraction[2] != fraction[3]:
        return gold.replace(fraction[0], f"{fraction[1]}\\frac{{{fraction[3]}}}{{{fraction[2]}}}", 1)
    if kind == 1 and gold.startswith("-"):
        return gold[1:]
    if kind == 1 and gold[:1].isdigit() and gold.strip("0"):
        return f"-{gold}"
    if numbers:
        chosen = draw.choice(numbers)
        value = int(chosen[0]) + draw.choice((-1, 1, 2, 10))
        return gold[: chosen.start()] + str(abs(value) + (abs(value) == int(chosen[0]))) + gold[chosen.end() :]
    return f"{gold}+1" if "text" not in gold else "\\text{none}"


def decimal(gold: str) -> str:
    """Return a fraction as a decimal, exact where it ends; other answers as they are."""
    whole = _SIMPLE_FRACTION.fullmatch(gold)
    if not whole:
        return gold
    value = Fraction(int(whole[1] + whole[2]), int(whole[3]))
    return str(float(value))


def math_like_pairs(num_pairs: int, seed: int, answers: list[str]) -> list[tuple[str, str]]:
    """Return (answer, reference) pairs: 45 % rewritten, 35 % changed, 10 % another question's answer, 5 % decimals, 5 % the same text."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(num_pairs):
        gold = draw.choice(answers)
        chance = draw.random()
        if chance < 0.45:
            answer = draw.choice(WAYS)(gold)
        elif chance < 0.8:
            answer = draw.choice(WAYS)(mutated(gold, draw)) if draw.random() < 0.5 else mutated(gold, draw)
        elif chance < 0.9:
            answer = draw.choice(answers)
        else:
            answer = decimal(gold) if chance < 0.95 else gold
        pairs.append((answer, gold))
    return pairs
