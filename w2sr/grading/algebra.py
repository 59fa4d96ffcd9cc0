r"""Two ways to compute the value of an expression: exactly, where equality can be decided, and numerically, where inequality can be shown.

Exact values are fractions of polynomials in letters over the field Q(i, square roots of whole numbers); \pi and e are letters too. The
square roots of different square-free numbers are linearly independent over Q, so every polynomial has one normal form: two values are
equal exactly when their cross products have the same normal form. No rounding takes part. (That \pi and e might satisfy a polynomial
equation is open; a numeric coincidence of that kind would be read as a difference.)

Numeric values are complex numbers of 50 digits at random points. Equal expressions agree there but for rounding, hence a clear difference
proves inequality. Agreement proves nothing and is never called equality here.

Both refuse (`Unreadable`) what is too large for microseconds, so hostile input needs no process of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar

MAX_TERMS = 64
MAX_EXPONENT = 64
MAX_BITS = 2048
_MAX_RADICAND = 10**10
_MAX_FACTORIAL = 60
_DIGITS = 50
_MAX_SIZE = 1e25  # of any intermediate value: with 50 digits, what cancels leaves an error far below _AGREE
_AGREE = 1e-15
NUM_POINTS = 2


class Unreadable(Exception):
    """The text is no expression of this kind, or too large a one."""


Value = TypeVar("Value")


class Algebra(Protocol[Value]):
    """What the parser asks for: see Exact and Numeric."""

    def number(self, value: Fraction) -> Value: ...
    def letter(self, name: str) -> Value: ...
    def add(self, one: Value, other: Value) -> Value: ...
    def multiply(self, one: Value, other: Value) -> Value: ...
    def divide(self, one: Value, other: Value) -> Value: ...
    def power(self, base: Value, exponent: Value) -> Value: ...
    def root(self, value: Value, index: int) -> Value: ...
    def factorial(self, value: Value) -> Value: ...
    def function(self, name: str, value: Value) -> Value: ...


# A monomial is (square-free radicand, ((letter, exponent), ...)), a polynomial maps monomials to coefficients that are not 0.
Monomial: TypeAlias = tuple[int, tuple[tuple[str, int], ...]]
Polynomial: TypeAlias = dict[Monomial, Fraction]
Ratio: TypeAlias = tuple[Polynomial, Polynomial]
_ONE: Monomial = (1, ())
_UNIT: Polynomial = {_ONE: Fraction(1)}


class Exact:
    """Exact values as (numerator, denominator). Only square roots of rational numbers and whole exponents are exact here."""

    def number(self, value: Fraction) -> Ratio:
        return _constant(value), _UNIT

    def letter(self, name: str) -> Ratio:
        return {(1, ((name, 1),)): Fraction(1)}, _UNIT

    def add(self, one: Ratio, other: Ratio) -> Ratio:
        if one[1] == other[1]:
            return _sum(one[0], other[0]), one[1]
        return _sum(_product(one[0], other[1]), _product(other[0], one[1])), _product(one[1], other[1])

    def multiply(self, one: Ratio, other: Ratio) -> Ratio:
        return _product(one[0], other[0]), _product(one[1], other[1])

    def divide(self, one: Ratio, other: Ratio) -> Ratio:
        if not other[0]:
            raise Unreadable("division by zero")
        constant = constant_of(other)
        if constant is not None:
            return {monomial: value / constant for monomial, value in one[0].items()}, one[1]
        return _product(one[0], other[1]), _product(one[1], other[0])

    def power(self, base: Ratio, exponent: Ratio) -> Ratio:
        constant = constant_of(exponent)
        if constant == Fraction(1, 2):
            return self.root(base, 2)
        if constant is None or constant.denominator != 1 or abs(constant) > MAX_EXPONENT:
            raise Unreadable("not an exact power")
        if constant < 0 or (constant == 0 and not base[0]):
            return self.power(self.divide((_UNIT, _UNIT), base), self.number(-constant))
        result: Ratio = (_UNIT, _UNIT)
        for _ in range(int(constant)):
            result = self.multiply(result, base)
        return result

    def root(self, value: Ratio, index: int) -> Ratio:
        constant = constant_of(value)
        if index != 2 or constant is None:
            raise Unreadable("not an exact root")
        factor, radicand = _square_free(abs(constant.numerator) * constant.denominator)
        letters = (("i", 1),) if constant < 0 else ()
        coefficient = Fraction(factor, constant.denominator)
        return ({(radicand, letters): coefficient} if coefficient else {}), _UNIT

    def factorial(self, value: Ratio) -> Ratio:
        return self.number(Fraction(_factorial(constant_of(value))))

    def function(self, name: str, value: Ratio) -> Ratio:
        constant = constant_of(value)
        if name == "abs" and constant is not None:
            return self.number(abs(constant))
        raise Unreadable(f"{name} has no exact value here")


def constant_of(value: Ratio) -> Fraction | None:
    """Return the rational number that `value` is, or None."""
    numerator, denominator = value
    if denominator is not _UNIT and set(denominator) != {_ONE}:
        return None
    if not numerator:
        return Fraction(0)
    return numerator[_ONE] / denominator[_ONE] if set(numerator) == {_ONE} else None


def equal(one: Ratio, other: Ratio) -> bool:
    """Decide whether two exact values are the same."""
    if one[1] == other[1]:
        return one[0] == other[0]
    return _product(one[0], other[1]) == _product(other[0], one[1])


def letters_of(value: Ratio) -> set[str]:
    """Return the letters in an exact value, constants (\\pi, e, i) aside."""
    return {name for part in value for _, letters in part for name, _ in letters} - {"\\pi", "e", "i"}


def same_roots(one: Ratio, other: Ratio) -> bool | None:
    """Decide whether `one = 0` and `other = 0` say the same: True if proportional, False if linear and not, None if not known."""
    if not one[0] or not other[0] or constant_of(one) is not None or constant_of(other) is not None:
        return None
    monomial = next(iter(one[0]))
    if monomial in other[0]:
        scale_one, scale_other = one[0][monomial], other[0][monomial]
        if {key: value * scale_other for key, value in one[0].items()} == {key: value * scale_one for key, value in other[0].items()}:
            return True
    linear = all(radicand == 1 and sum(power for _, power in letters) <= 1 for part in (one[0], other[0]) for radicand, letters in part)
    return False if linear and one[1] == other[1] == _UNIT else None


def _constant(value: Fraction) -> Polynomial:
    return {_ONE: value} if value else {}


def _sum(one: Polynomial, other: Polynomial) -> Polynomial:
    total = dict(one)
    for monomial, value in other.items():
        new = total.get(monomial, 0) + value
        if new:
            total[monomial] = Fraction(new)
        else:
            total.pop(monomial, None)
    return _bounded(total)


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    if one is _UNIT:
        return other
    if other is _UNIT:
        return one
    if len(one) * len(other) > MAX_TERMS**2 // 4:
        raise Unreadable("too many terms")
    total: Polynomial = {}
    for left, first in one.items():
        for right, second in other.items():
            factor, monomial = _times(left, right)
            new = total.get(monomial, 0) + first * second * factor
            total[monomial] = Fraction(new)
    return _bounded({monomial: value for monomial, value in total.items() if value})


def _times(one: Monomial, other: Monomial) -> tuple[int, Monomial]:
    factor, radicand = 1, one[0]
    if other[0] != 1:
        factor, radicand = _square_free(one[0] * other[0]) if one[0] != 1 else (1, other[0])
    if not one[1] or not other[1]:
        return factor, (radicand, one[1] or other[1])
    powers = dict(one[1])
    for name, power in other[1]:
        powers[name] = powers.get(name, 0) + power
    turns = powers.pop("i", 0)  # i is the one letter with a rule of its own
    if turns % 2:
        powers["i"] = 1
    if turns % 4 > 1:
        factor = -factor
    return factor, (radicand, tuple(sorted(powers.items())))


def _bounded(polynomial: Polynomial) -> Polynomial:
    if len(polynomial) > MAX_TERMS:
        raise Unreadable("too many terms")
    for (_, letters), value in polynomial.items():
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            raise Unreadable("numbers too long")
        if any(power > MAX_EXPONENT for _, power in letters):
            raise Unreadable("exponents too large")
    return polynomial


@lru_cache(maxsize=4096)
def _square_free(number: int) -> tuple[int, int]:
    """Return (factor, radicand) with factor^2 * radicand = number and radicand square-free."""
    if number > _MAX_RADICAND:
        raise Unreadable("radicand too large")
    if number == 0:
        return 0, 1
    factor, radicand, divisor, rest = 1, 1, 2, number
    while divisor * divisor <= rest:
        power = 0
        while rest % divisor == 0:
            rest //= divisor
            power += 1
        factor *= divisor ** (power // 2)
        radicand *= divisor ** (power % 2)
        divisor += 1 if divisor == 2 else 2
    return factor, radicand * rest


def _factorial(value: Fraction | None) -> int:
    if value is None or value.denominator != 1 or not 0 <= value <= _MAX_FACTORIAL:
        raise Unreadable("not a small factorial")
    result = 1
    for number in range(2, int(value) + 1):
        result *= number
    return result


class Numeric:
    """Values at one point: every letter has a random value near 1, drawn from its name and the number of the point."""

    def __init__(self, point: int) -> None:
        from mpmath import MPContext  # type: ignore[import-untyped]

        self._mp: Any = MPContext()
        self._mp.dps = _DIGITS
        self._point = point

    def number(self, value: Fraction) -> Any:
        return self._mp.mpf(value.numerator) / value.denominator

    def letter(self, name: str) -> Any:
        if name in ("\\pi", "e", "i"):
            return {"\\pi": self._mp.pi, "e": self._mp.e, "i": self._mp.j}[name] * 1
        drawn = random.Random(f"{name}/{self._point}").getrandbits(90)
        return self._mp.mpf(drawn) / 2**90 + self._mp.mpf("0.3")

    def add(self, one: Any, other: Any) -> Any:
        return one + other

    def multiply(self, one: Any, other: Any) -> Any:
        return self._checked(one * other)

    def divide(self, one: Any, other: Any) -> Any:
        if abs(other) < 1e-20:
            raise Unreadable("division by zero, or nearly")
        return self._checked(one / other)

    def power(self, base: Any, exponent: Any) -> Any:
        real_base = self._mp.im(base) == 0 and self._mp.re(base) > 0
        if abs(exponent) > 1000 or not (real_base or (base != 0 and exponent == self._mp.nint(self._mp.re(exponent)))):
            raise Unreadable("power out of range")  # and (-8)^{1/3}, which is -2 to some and complex to others
        return self._checked(base**exponent)

    def root(self, value: Any, index: int) -> Any:
        if index == 2:
            return self._mp.sqrt(value)
        if self._mp.im(value) or index > 100:
            raise Unreadable("root out of range")
        real = self._mp.re(value)
        if real < 0 and index % 2 == 0:
            raise Unreadable("an even root of a negative number")
        return -self._mp.root(-real, index) if real < 0 else self._mp.root(real, index)  # the real root, as in school

    def factorial(self, value: Any) -> Any:
        whole = Fraction(int(self._mp.nint(self._mp.re(value)))) if abs(value) < 100 else None
        if whole is None or abs(value - int(whole)) > 1e-20:
            raise Unreadable("not a whole number")
        return self._mp.mpf(_factorial(whole))

    def function(self, name: str, value: Any) -> Any:
        if abs(value) > 1000:
            raise Unreadable("argument out of range")
        known: dict[str, Callable[[Any], Any]] = {
            "abs": abs,
            "sin": self._mp.sin,
            "cos": self._mp.cos,
            "tan": self._mp.tan,
            "cot": self._mp.cot,
            "sec": self._mp.sec,
            "csc": self._mp.csc,
            "arcsin": self._mp.asin,
            "arccos": self._mp.acos,
            "arctan": self._mp.atan,
            "sinh": self._mp.sinh,
            "cosh": self._mp.cosh,
            "tanh": self._mp.tanh,
            "exp": self._mp.exp,
            "ln": self._mp.log,
        }
        if name not in known:
            raise Unreadable(f"unknown function {name}")
        try:
            return self._checked(known[name](value))
        except (ValueError, ZeroDivisionError) as error:
            raise Unreadable("a pole") from error

    def _checked(self, value: Any) -> Any:
        if not self._mp.isfinite(value) or abs(value) > _MAX_SIZE:
            raise Unreadable("too large")
        return value


def agree(one: Any, other: Any) -> bool:
    """Return whether two numeric values are the same but for rounding."""
    return bool(abs(one - other) <= _AGREE * (abs(one) + abs(other) + 1e-3))
