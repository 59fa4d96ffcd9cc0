r"""A reader for expressions as they are written in answers, LaTeX or plain: `\frac{3\sqrt{3}}{4}`, `2x^2 - 1/2`, `1\frac45`, `sqrt(5)/2`.

It computes while it reads, with whichever algebra it is given (algebra.py), and shares nothing with math-verify. What it does not
understand, or what people read in two ways (`1/2x`, `\sqrt51`, `x2`), it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Generic

from w2sr.grading.algebra import Algebra, Unreadable, Value
from w2sr.grading.vocabulary import FUNCTIONS, GREEK

MAX_TOKENS = 200
_MAX_DEPTH = 24

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|[^\sA-Za-z0-9\\]", re.ASCII)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_SPLIT_NUMBER = re.compile(r"\d\s+\.?\d", re.ASCII)
_MIXED = re.compile(r"(?<![\d.])(\d+)\s*(?:\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))|\s(\d+)/(\d+))", re.ASCII)
_PLAIN_NAMES = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|cot|sec|csc|ln|log|exp|infinity|infty|theta|alpha|beta)(?![A-Za-z])")


def tokens_of(text: str) -> tuple[str, ...]:
    """Return the tokens of an expression. Raises Unreadable for words, for numbers side by side, and when there are too many."""
    text = _PLAIN_NAMES.sub(r"\\\1 ", text)
    text = _MIXED.sub(_mixed_number, text)
    if _SPLIT_NUMBER.search(text) or _WORD.search(text):
        raise Unreadable("numbers side by side, or words")
    tokens = tuple(_TOKEN.findall(text))
    if not tokens or len(tokens) > MAX_TOKENS:
        raise Unreadable("empty or too long")
    return tokens


def evaluate(tokens: Sequence[str], algebra: Algebra[Value]) -> Value:
    """Return the value of an expression. Raises Unreadable when it is none that this reader and `algebra` can handle."""
    reader = _Reader(tokens, algebra)
    value: Value = reader.sum()
    if reader.token:
        raise Unreadable(f"unexpected {reader.token}")
    return value


def _mixed_number(match: re.Match[str]) -> str:
    """`1\\frac45` is 9/5 to everyone who writes it."""
    whole, digits = match[1], [group for group in match.groups()[1:] if group is not None]
    if int(digits[1]) <= int(digits[0]):
        return match[0]  # 2\frac{3}{2} may be a product
    return rf"(({whole})+\frac{{{digits[0]}}}{{{digits[1]}}})"


class _Reader(Generic[Value]):
    """Recursive descent. `token` is the next token, "" at the end."""

    def __init__(self, tokens: Sequence[str], algebra: Algebra[Value]) -> None:
        self._rest = list(reversed(tokens))
        self._algebra: Algebra[Any] = algebra
        self._depth = 0
        self.token = ""
        self._advance()

    def sum(self) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self._term()
        while self.token in ("+", "-"):
            minus = self._take() == "-"
            term = self._term()
            value = self._algebra.add(value, self._negative(term) if minus else term)
        self._depth -= 1
        return value

    def _term(self) -> Any:
        value, divided = self._signed(), False
        while True:
            if self.token in ("*", "\\cdot", "\\times"):
                self._take()
                value, divided = self._algebra.multiply(value, self._signed()), False
            elif self.token in ("/", "\\div"):
                self._take()
                value, divided = self._algebra.divide(value, self._signed()), True
            elif self._starts_factor():
                if divided:
                    raise Unreadable("1/2x may be x/2 or 1/(2x)")
                value = self._algebra.multiply(value, self._power())
            else:
                return value

    def _signed(self) -> Any:
        minus = False
        while self.token in ("+", "-"):
            minus ^= self._take() == "-"
        value = self._power()
        return self._negative(value) if minus else value

    def _negative(self, value: Any) -> Any:
        return self._algebra.multiply(self._algebra.number(Fraction(-1)), value)

    def _power(self) -> Any:
        value = self._atom()
        while self.token == "!":
            self._take()
            value = self._algebra.factorial(value)
        if self.token == "^":
            value = self._algebra.power(value, self._exponent())
            if self.token == "^":
                raise Unreadable("a tower of powers")
        return value

    def _exponent(self) -> Any:
        self._expect("^")
        if self.token == "{":
            return self._group("{", "}")
        if self.token == "(":
            return self._group("(", ")")
        if self.token == "-":
            self._take()
            return self._negative(self._atom())
        return self._atom()

    def _starts_factor(self) -> bool:
        token = self.token
        return token in ("(", "{", "[") or token.isalpha() or (len(token) > 1 and token[0] == "\\" and self._is_value(token[1:]))

    def _is_value(self, name: str) -> bool:
        return name in ("frac", "sqrt", "pi") or name in FUNCTIONS or name in GREEK

    def _atom(self) -> Any:
        token = self.token
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            value = self._algebra.number(Fraction(self._take()))
            if self.token and self.token[0] in ".0123456789":
                raise Unreadable("two numbers side by side")
            return value
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if token == opening:
                return self._group(opening, closing)
        if token == "|":
            return self._algebra.function("abs", self._group("|", "|"))
        if token.isalpha():
            return self._letter(self._take())
        return self._command(self._take()[1:])

    def _command(self, name: str) -> Any:
        if name == "frac":
            numerator = self._argument()
            return self._algebra.divide(numerator, self._argument())
        if name == "sqrt":
            index = 2
            if self.token == "[":
                self._take()
                digits = self._take()
                index = int(digits) if digits.isdigit() and len(digits) < 3 else 0
                self._expect("]")
            if len(self.token) > 1 and self.token.isdigit():
                raise Unreadable("\\sqrt51 may be the root of 5 or of 51")
            value = self._argument()
            if index < 2:
                raise Unreadable("an index that is no small number")
            return self._algebra.root(value, index)
        if name in FUNCTIONS:
            return self._function(name)
        if name == "pi" or name in GREEK:
            return self._letter(f"\\{name}")
        raise Unreadable(f"unknown command {name}")

    def _letter(self, name: str) -> Any:
        if self.token == "_":
            self._take()
            if self.token == "{":
                self._take()
                parts = []
                while self.token.isalnum():
                    parts.append(self._take())
                self._expect("}")
            else:
                parts = [self._take()]
            if not all(part.isalnum() for part in parts) or not parts:
                raise Unreadable("a subscript that is no name")
            name = f"{name}_{''.join(parts)}"
        return self._algebra.letter(name)

    def _function(self, name: str) -> Any:
        exponent = base = None
        if self.token == "_" and name == "log":
            self._take()
            base = self._argument()
        if self.token == "^":
            exponent = self._exponent()
        if exponent is not None and not (name in FUNCTIONS and self._is_positive_whole(exponent)):
            raise Unreadable("sin^{-1} may be an inverse or a reciprocal")
        value = self._operand()
        if name == "log" and base is not None:
            value = self._algebra.divide(self._algebra.function("ln", value), self._algebra.function("ln", base))
        else:
            value = self._algebra.function(name, value)
        return value if exponent is None else self._algebra.power(value, exponent)

    def _is_positive_whole(self, exponent: Any) -> bool:
        return any(exponent == self._algebra.number(Fraction(number)) for number in range(2, 9))

    def _operand(self) -> Any:
        """What a function is applied to: a bracket, or the factors that follow up to an operator or another function."""
        if self.token in ("(", "{"):
            return self._group(self.token, ")" if self.token == "(" else "}")
        value = self._power()
        while self._starts_factor() and self.token not in ("(", "{", "[") and self.token[1:] not in FUNCTIONS:
            value = self._algebra.multiply(value, self._power())
        return value

    def _argument(self) -> Any:
        """A LaTeX argument: a group, or one token, of which a number gives its first digit only."""
        if self.token == "{":
            return self._group("{", "}")
        if self.token == "(":
            return self._group("(", ")")
        if self.token.isdigit():
            first, rest = self.token[0], self.token[1:]
            if rest:
                self._rest.append(rest)
            self._advance()
            return self._algebra.number(Fraction(first))
        if self.token.isalpha():
            return self._algebra.letter(self._take())
        if self.token == "\\pi":
            return self._letter(self._take())
        raise Unreadable("an argument is missing")

    def _group(self, opening: str, closing: str) -> Any:
        self._expect(opening)
        value = self.sum()
        self._expect(closing)
        return value

    def _expect(self, token: str) -> None:
        if self.token != token:
            raise Unreadable(f"{token} is missing")
        self._advance()

    def _take(self) -> str:
        token = self.token
        if not token:
            raise Unreadable("unexpected end")
        self._advance()
        return token

    def _advance(self) -> None:
        self.token = self._rest.pop() if self._rest else ""
