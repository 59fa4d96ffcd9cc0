"""When two answers are the same. A verdict given here is proven: equality by exact arithmetic, inequality by exact arithmetic or by
different values at a random point (algebra.py). None: it could not be proven here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from w2sr.grading.algebra import NUM_POINTS, agree, constant_of, equal, letters_of, same_roots
from w2sr.grading.forms import LISTS, Form, exact_value, numeric_value
from w2sr.grading.vocabulary import TELLING

Outcome = Literal["match", "mismatch", "units", "order", "text_overlap"]


@dataclass(frozen=True)
class Rules:
    """What counts as equal beyond equality. See config.VerifyConfig."""

    percent: bool = False
    tolerance: float = 0.0


def compare(answer: Form, reference: Form, rules: Rules) -> Outcome | None:
    """Return the outcome, or None when it cannot be proven here."""
    if answer.kind == reference.kind == "words":
        return _compare_words(answer.text, reference.text)
    same = _same(answer, reference)
    if same is not True and rules.percent and _hundredfold(answer, reference):
        same = True
    if same is not True and rules.tolerance and _close(answer, reference, rules.tolerance):
        same = True
    if same is not None and answer.unit and reference.unit and answer.unit != reference.unit and "%" not in (answer.unit, reference.unit):
        return "units"  # "100 cm" for "1 m", "5 cm" for "5 m": no verdict without a table of units
    if same is None and {answer.kind, reference.kind} == {"list", "()"} and _same_members(answer.items, reference.items):
        return "order"  # (2,1) for "1,2": a pair in the wrong order, or a list in brackets
    return None if same is None else "match" if same else "mismatch"


def same_value(one: tuple[str, ...], other: tuple[str, ...]) -> bool | None:
    """True: proven equal; False: proven different; None: neither."""
    if one == other:
        return True
    first, second = exact_value(one), exact_value(other)
    if first is not None and second is not None:
        return equal(first, second)
    for point in range(NUM_POINTS):
        left, right = numeric_value(one, point), numeric_value(other, point)
        if left is not None and right is not None and not agree(left, right):
            return False
    return None


def _same(one: Form, other: Form) -> bool | None:
    if "equation" in (one.kind, other.kind):
        return _same_equation(one, other)
    if one.name and other.name and one.name != other.name:
        return None
    if {one.kind, other.kind} <= {"value", "words"} and one.tokens and other.tokens:
        return _same_number(one, other)
    if one.kind == other.kind == "infinity":
        return one.text == other.text
    if one.kind == other.kind == "words":
        return one.text == other.text or None
    if one.items and other.items:
        return _same_items(one, other)
    if "words" in (one.kind, other.kind):
        return _words_and_other(one, other) if one.kind == "words" else _words_and_other(other, one)
    return False


def _same_number(one: Form, other: Form) -> bool | None:
    if one.base or other.base:
        return one.tokens == other.tokens and one.base in (0, other.base)  # "52" for 52_8, but not 52_8 for "52"
    same = same_value(one.tokens, other.tokens)
    if same is not True and one.unit != other.unit:
        if "%" in (one.unit, other.unit):
            percent, plain = (one, other) if one.unit == "%" else (other, one)
            return True if same_value(("(", *percent.tokens, ")", "/", "100"), plain.tokens) else same
        if {one.unit, other.unit} == {"", "degree"}:
            angle, plain = (one, other) if one.unit else (other, one)
            return True if same_value(("(", *angle.tokens, ")", "*", "\\pi", "/", "180"), plain.tokens) else same
    return same


def _same_items(one: Form, other: Form) -> bool | None:
    if one.kind in LISTS and other.kind in LISTS:
        return _same_members(one.items, other.items)
    if "union" in (one.kind, other.kind):
        return _same_union(one, other)
    in_order = _same_in_order(one.items, other.items)
    if one.kind == other.kind:
        return in_order
    if {one.kind, other.kind} == {"list", "()"}:  # (1,2) and 1,2 in this order; in another order nobody knows
        return True if in_order else None if _same_members(one.items, other.items) is not False else False
    if "matrix" in one.kind + other.kind or "set" in (one.kind, other.kind):
        return False if in_order is False else None  # a column and a row may be the same vector
    return False  # (3,4) and (3,4]


def _same_union(one: Form, other: Form) -> bool | None:
    """Unions of intervals that neither touch nor overlap are the same when their intervals are, in order."""
    first, second = _disjoint(one), _disjoint(other)
    return _same_in_order(first, second) if first is not None and second is not None else None


def _disjoint(form: Form) -> list[Form] | None:
    """Return the intervals of a union in ascending order, or None when they touch, or their ends are no known real numbers."""
    intervals = form.items if form.kind == "union" else (form,)
    ends = []
    for interval in intervals:
        if interval.kind not in ("()", "[]", "(]", "[)") or len(interval.items) != 2:
            return None
        low, high = (_real(end) for end in interval.items)
        if low is None or high is None or not low < high:
            return None
        ends.append((low, high, interval))
    ends.sort(key=lambda end: end[0])
    # (0,9) and (9,36) leave 9 out: they touch, and are two all the same when both are open there
    for left, right in pairwise(ends):
        touching_open = left[1] == right[0] and left[2].kind[1] == ")" and right[2].kind[0] == "("
        if not (left[1] < right[0] or touching_open):
            return None
    return [end[2] for end in ends]


def _real(form: Form) -> Any | None:
    if form.kind == "infinity":
        return float(f"{form.text}inf")
    value = exact_value(form.tokens) if form.kind == "value" and not form.base else None
    number = numeric_value(form.tokens, 0) if value is not None and not letters_of(value) else None
    return number if number is not None and not isinstance(number, complex) and not getattr(number, "imag", 0) else None


def _same_in_order(one: Sequence[Form], other: Sequence[Form]) -> bool | None:
    if len(one) != len(other):
        return False
    found = [_same(left, right) for left, right in zip(one, other)]
    return False if False in found else None if None in found else True


def _same_members(one: Sequence[Form], other: Sequence[Form]) -> bool | None:
    table = [[_same(left, right) for right in other] for left in one]
    if all(True in row for row in table) and all(any(row[column] for row in table) for column in range(len(other))):
        return True
    return None if any(None in row for row in table) else False


def _same_equation(one: Form, other: Form) -> bool | None:
    first, second = (_as_equation(form) for form in (one, other))
    if first is None or second is None:
        return _side_of_equation(one, other) if one.kind == "equation" else _side_of_equation(other, one)
    left, right = exact_value(first), exact_value(second)
    if left is None or right is None:
        return None
    return same_roots(left, right)


def _side_of_equation(equation: Form, other: Form) -> bool | None:
    """`a + b = 5` may well be meant as 5. But x - y = 0 is not 0, and no other number is an equation in two unknowns."""
    value, whole = exact_value(other.tokens) if other.kind == "value" else None, exact_value(equation.tokens)
    if value is None or whole is None or constant_of(value) is None or len(letters_of(whole)) < 2:
        return None
    sides = [same_value(side.tokens, other.tokens) for side in equation.items]
    return False if constant_of(value) == 0 or sides == [False, False] else None


def _as_equation(form: Form) -> tuple[str, ...] | None:
    if form.kind == "equation":
        return form.tokens
    return (form.name, "-", "(", *form.tokens, ")") if form.kind == "value" and len(form.name) == 1 else None


def _words_and_other(words: Form, other: Form) -> bool | None:
    """A word that names no number and no set is neither a list nor an expression, unless it is one letter by letter (abc = cab)."""
    if TELLING & set(re.split(r"[ -]", words.text)):
        return None
    if other.kind != "value" or other.base:
        return False if other.items or other.base else None
    letters = tuple(character for character in words.text if character.isalpha())
    spelled = same_value(letters, tuple(token.lower() if len(token) == 1 else token for token in other.tokens))
    return False if spelled is False else None


def _compare_words(answer: str, reference: str) -> Outcome | None:
    if answer == reference:
        return "match"
    if sorted(answer.replace(" ", "")) == sorted(reference.replace(" ", "")):
        return None  # abc and cab: the same product of letters, perhaps
    # "to the east" for "east": neither a proof nor a contradiction.
    short, long = sorted((answer, reference), key=len)
    return "text_overlap" if f" {short} " in f" {long} " and len(short) > 1 else "mismatch"


def _constant(form: Form) -> Fraction | None:
    value = exact_value(form.tokens) if form.kind == "value" and not form.base else None
    return constant_of(value) if value is not None else None


def _hundredfold(one: Form, other: Form) -> bool:
    first, second = _constant(one), _constant(other)
    return first is not None and second is not None and (first == 100 * second or second == 100 * first)


def _close(one: Form, other: Form, tolerance: float) -> bool:
    if not one.kind == other.kind == "value" or one.base or other.base:
        return False
    left, right = numeric_value(one.tokens, 0), numeric_value(other.tokens, 0)
    values = (exact_value(one.tokens), exact_value(other.tokens))
    if left is None or right is None or any(value is not None and letters_of(value) for value in values):
        return False
    return bool(abs(left - right) <= tolerance * abs(right))
