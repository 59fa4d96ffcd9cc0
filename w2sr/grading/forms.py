r"""What an answer is, as far as it can be read for certain: a number with a unit, a list, an interval, a matrix, an equation, a word.

Reading takes tens of microseconds whatever the text is, and shares nothing with math-verify. What is not understood is None, and others may
try. compare.py says when two of them are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from w2sr.grading.algebra import Exact, Numeric, Ratio, Unreadable
from w2sr.grading.expressions import evaluate, tokens_of
from w2sr.grading.latex import clean, split_top, take_unit, words_of
from w2sr.grading.vocabulary import NUMBERS

LISTS = ("list", "set")
MAX_CHARS = 300
_BRACKETS = {("(", ")"): "()", ("[", "]"): "[]", ("(", "]"): "(]", ("[", ")"): "[)", ("\\{", "\\}"): "set"}
_RELATION = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])")
_ASSIGNMENT = re.compile(r"=|\\in(?![A-Za-z])")
_NAME = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?(?:\([A-Za-z]\))?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_GROUPED = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)", re.ASCII)
_BASE = re.compile(r"(-?[0-9A-Fa-f]+)_(?:\{(\d{1,2})\}|(\d{1,2}))|(-?[0-9A-Fa-f]+)_\{?\\text\{(?:base )?(\d{1,2})\}\}?", re.ASCII)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """An answer that was read.

    `kind`: "value" (`tokens`), "infinity" (`text` is its sign), "words" (`text`; a letter has `tokens`), "equation" (`tokens` of left
    minus right, `items` are the sides), "union", "list", "set", "()", "[]", "(]", "[)", or "matrix 2x3", all of these with `items`.
    `name` is what it was assigned to (x in x=5).
    """

    kind: str
    tokens: tuple[str, ...] = ()
    items: tuple[Form, ...] = ()
    text: str = ""
    name: str = ""
    unit: str = ""
    base: int = 0


@lru_cache(maxsize=1 << 14)
def form_of(text: str) -> Form | None:
    """Read an answer; None when it cannot be read for certain."""
    if len(text) > MAX_CHARS:
        return None
    cleaned = clean(text)
    if not cleaned or not cleaned.isascii():
        return None
    try:
        return _form(cleaned)
    except (Unreadable, RecursionError):
        return None


def _form(text: str) -> Form:
    words = words_of(text)
    if words is not None:
        number = NUMBERS.get(words)
        letter = next(character for character in text.replace("\\text", "") if character.isalpha()) if len(words) == 1 else ""
        return Form("words", (letter,) if letter else (), text=words) if number is None else Form("value", (str(number),))
    pieces = split_top(text, (",", ";", "\\text{ or }", "\\text{ and }", " or ", " and ", "\\text{or}", "\\text{and}"))
    if len(pieces) > 1 and not _THOUSANDS.fullmatch(take_unit(_unassigned(text)[1])[0]):
        if _GROUPED.search(text):
            raise Unreadable("1,200 may be a number or a list")
        return _collection("list", [piece for piece in pieces if piece])
    name, core = _unassigned(text)
    if name:
        return replace(_single(core), name=name)
    return _single(core)


def _unassigned(text: str) -> tuple[str, str]:
    """Return (name, what it is): x=5 and x \\in [1,2] say what x is."""
    parts = _ASSIGNMENT.split(text, maxsplit=1)
    if len(parts) == 2 and "=" not in parts[1] and not _RELATION.search(text) and _NAME.fullmatch(parts[0].strip()):
        return parts[0].strip(), parts[1].strip()
    return "", text


def _single(text: str) -> Form:
    if "=" in text or _RELATION.search(text):
        return _equation(text) if "=" in text else _inequality(text)
    pieces = split_top(text, ("\\cup",))
    if len(pieces) > 1:
        return Form("union", items=tuple(_single(piece) for piece in pieces))
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _matrix(matrix[2])
    for (opening, closing), kind in _BRACKETS.items():
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            pieces = split_top(inner, (",",))
            if len(pieces) > 1 or kind == "set":
                if _GROUPED.search(inner) and len(pieces) != 2:
                    raise Unreadable("1,200 may be a number or a list")
                return _collection(kind, pieces)
    return _value(text)


def _collection(kind: str, pieces: Sequence[str]) -> Form:
    items: list[Form] = []
    for piece in pieces:
        item = _form(piece)
        if item.kind == "list":
            if kind not in LISTS:
                raise Unreadable("a list inside brackets that keep an order")
            items.extend(item.items)
        else:
            items.append(item)
    names = {item.name for item in items} - {""}
    if len(names) > 1:
        raise Unreadable("several unknowns")  # x=1, y=2: an order that this form does not keep
    return items[0] if len(items) == 1 and kind in LISTS else Form(kind, items=tuple(items), name=next(iter(names), ""))


def _matrix(body: str) -> Form:
    rows = [[piece.strip() for piece in row.split("&")] for row in re.split(r"\\\\", body) if row.strip()]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise Unreadable("a matrix with ragged rows")
    return Form(f"matrix {len(rows)}x{len(rows[0])}", items=tuple(_value(cell) for row in rows for cell in row))


def _equation(text: str) -> Form:
    left, _, right = text.partition("=")
    if "=" in right or _RELATION.search(text) or not right.strip():
        raise Unreadable("a chain of equations")
    sides = tokens_of(left), tokens_of(right)
    return Form("equation", ("(", *sides[0], ")", "-", "(", *sides[1], ")"), tuple(Form("value", side) for side in sides))


def _inequality(text: str) -> Form:
    """`1 < x \\le 2` is the interval (1, 2] and `x > 3` is (3, \\infty)."""
    parts, signs = [part.strip() for part in _RELATION.split(text)], _RELATION.findall(text)
    if signs[0] in (">", "\\ge"):
        parts, signs = parts[::-1], [{">": "<", "\\ge": "\\le"}.get(sign, "") for sign in reversed(signs)]
    if any(sign not in ("<", "\\le") for sign in signs):
        raise Unreadable("relations in two directions")
    if len(parts) == 2 and _NAME.fullmatch(parts[0]):
        parts, signs = ["-\\infty", *parts], ["<", *signs]
    elif len(parts) == 2 and _NAME.fullmatch(parts[1]):
        parts, signs = [*parts, "\\infty"], [*signs, "<"]
    if len(parts) != 3 or not _NAME.fullmatch(parts[1]):
        raise Unreadable("no interval of one unknown")
    kind = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Form(kind, items=(_value(parts[0]), _value(parts[2])), name=parts[1])


def _value(text: str) -> Form:
    core, unit = take_unit(text)
    if _THOUSANDS.fullmatch(core):
        core = core.replace(",", "")
    sign = core.removesuffix("\\infty").strip()
    if core.endswith("\\infty") and sign in ("", "+", "-"):
        return Form("infinity", text="-" if sign == "-" else "+")
    base = _BASE.fullmatch(core)
    if base:
        digits, number = base[1] or base[4], int(base[2] or base[3] or base[5])
        return Form("value", (digits.lower(),), base=number)
    if "\\pm" in core:
        if core.count("\\pm") > 1 or "\\mp" in core:
            raise Unreadable("more than one sign to choose")
        return Form("list", items=tuple(_checked(Form("value", tokens_of(core.replace("\\pm", sign)), unit=unit)) for sign in "+-"))
    return _checked(Form("value", tokens_of(core), unit=unit))


def _checked(form: Form) -> Form:
    if exact_value(form.tokens) is None and numeric_value(form.tokens, 0) is None:
        raise Unreadable("no value")
    return form


@lru_cache(maxsize=1 << 14)
def exact_value(tokens: tuple[str, ...]) -> Ratio | None:
    """Return the exact value of an expression, or None when it has none that algebra.Exact can hold."""
    try:
        return evaluate(tokens, Exact())
    except Unreadable:
        return None


@lru_cache(maxsize=1 << 14)
def numeric_value(tokens: tuple[str, ...], point: int) -> Any | None:
    """Return the value of an expression at a random point, or None."""
    try:
        return evaluate(tokens, _numeric(point))
    except Unreadable:
        return None


@lru_cache(maxsize=8)
def _numeric(point: int) -> Numeric:
    return Numeric(point)
