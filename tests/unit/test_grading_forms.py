"""What is proven without math-verify: equal, different, or neither; and that the proofs hold."""

import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.grading.algebra import Exact, Numeric, Unreadable, agree, constant_of, equal
from w2sr.grading.compare import Rules, compare
from w2sr.grading.expressions import evaluate, tokens_of
from w2sr.grading.forms import form_of

EQUAL = [
    # numbers, fractions, roots, constants
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"1\frac{4}{5}", "9/5"),
    ("137 1/2", r"137\frac{1}{2}"),
    (r"10,\!080", "10080"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"\frac{6}{2+\sqrt{2}}", r"6 - 3\sqrt{2}"),
    (r"\sqrt{-4}", "2i"),
    (r"\frac{1+i}{1-i}", "i"),
    ("2^{10}", "1024"),
    ("5!", "120"),
    (r"\log_2 8", r"\log_{2}(8)"),
    ("two", "2"),
    # letters
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{x^2-1}{x-1}", "x + 1"),
    ("2(x+1)", "2x+2"),
    ("x_1 + x_{2}", "x_2+x_1"),
    # units and signs around numbers
    (r"90^\circ", "90 degrees"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    ("5 apples", "5"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"864 \mbox{ inches}^2", "864 square inches"),
    (r"\$32,\!348", "32348 dollars"),
    ("50%", "50"),
    (r"50\%", r"\frac12"),
    ("60 mph", "60 miles per hour"),
    # assignments, equations, inequalities
    ("x = 5", "5"),
    ("y=2x+3", "2x + 3"),
    ("y - 2x = 3", "y = 2x+3"),
    ("5x - 7y + 11z + 4 = 0", "-10x+14y-22z=8"),
    (r"3 < x \le 4", "(3,4]"),
    ("x > 3", r"(3, \infty)"),
    (r"x \in [-2,7]", "[-2,7]"),
    # several values
    ("1,-2", "-2, 1"),
    ("x=1 or x=-2", "1,-2"),
    (r"\{1, 2\}", "2,1"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("(3, 4)", "(3,4)"),
    (r"\left( \frac{3}{2}, -13 \right)", "(1.5,-13)"),
    ("1, 2", "(1,2)"),
    (r"(5,6) \cup (-\infty, 2)", r"(-\infty,2)\cup(5,6)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    # words and bases
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"),
    ("52_8", "52_{8}"),
]
DIFFERENT = [
    ("50", "0.5"),
    ("0.333333", r"\frac{1}{3}"),
    ("1.41421356", r"\sqrt{2}"),
    (r"\frac{3}{4}", r"\frac{4}{3}"),
    ("3.14159265358979", r"\pi"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"),
    (r"\cot x", r"\tan x"),
    (r"\sqrt[3]{2}", "1.26"),
    (r"\ln 2", "0.693147"),
    ("2x", "x/2"),
    ("x^2 + 1", "x^2 - 1"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "(1,2]"),
    ("1,2", "1,3"),
    ("1,2,3", "1,2"),
    ("y = 2x + 3", "y = 2x + 4"),
    ("52_8", "52_9"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"(-\infty,2)\cup(5,6)", r"(-\infty,2)\cup(5,7)"),
    (r"\text{east}", "seat belt"),
    (r"\text{even}", "5"),
    ("-3", "3"),
    ("60%", "50"),
    (r"180^\circ", r"\frac{\pi}{2}"),
    ("1 000 001/1000", "1"),
]
UNKNOWN = [
    (r"\sin^2 x", r"(\sin x)^{2}"),  # the same numbers at random points prove nothing
    ("1/2x", "x/2"),
    (r"\sqrt51", r"\sqrt{51}"),
    ("120 200", "320"),
    ("5 million", "5"),
    ("5 xyz", "5"),
    ("not 5", "5"),
    ("5 less than 7", "5"),
    (r"\sin^{-1} x", r"\frac{1}{\sin x}"),
    ("(1,2,3)", r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}"),
    ("all real numbers", "5"),
    (r"(0,2)\cup(1,3)", "(0,3)"),
    ("x=5", "y=5"),
    ("x^2 = 4", "x = 2"),
    ("(-8)^{1/3}", "-2"),
    ("9^{9^{9^{9}}}", "1"),
    ("\uff15", "5"),
    ("\u0445", "x"),
    ("", "5"),
    ("x" * 301, "5"),
]


def outcome(answer: str, reference: str, rules: Rules = Rules()) -> str | None:  # noqa: B008 - frozen
    one, other = form_of(answer), form_of(reference)
    return compare(one, other, rules) if one is not None and other is not None else None


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_the_same_answer_in_two_ways_is_proven_equal(one: str, other: str) -> None:
    assert outcome(one, other) == outcome(other, one) == "match" or one.startswith("\\log")


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers_are_never_called_equal(one: str, other: str) -> None:
    assert outcome(one, other) == outcome(other, one) == ("mismatch" if form_of(one) else None)


@pytest.mark.parametrize(("one", "other"), UNKNOWN)
def test_what_can_be_read_in_two_ways_is_left_to_others(one: str, other: str) -> None:
    assert outcome(one, other) is None
    assert outcome(other, one) is None


@pytest.mark.parametrize(("one", "other"), [("5 cm", "5 m"), ("100 cm", "1 m"), ("5 apples", "5 oranges"), ("$5", "5 cents")])
def test_other_units_are_neither_right_nor_wrong(one: str, other: str) -> None:
    assert outcome(one, other) == "units"


def test_a_base_may_be_left_out_but_not_be_added() -> None:
    assert outcome("52", "52_8") == "match"
    assert outcome("52_8", "52") == "mismatch"


def test_a_list_in_brackets_in_another_order_is_neither_right_nor_wrong() -> None:
    assert outcome("(-2,1)", "1,-2") == outcome("1,-2", "(-2,1)") == "order"
    assert outcome("(1,-2)", "1,-2") == "match"


def test_a_side_of_an_equation_may_be_the_answer_but_zero_is_not() -> None:
    assert outcome("5x - 7y + 11z + 4 = 0", "0") == outcome("0", "5x - 7y + 11z + 4 = 0") == "mismatch"
    assert outcome("a + b = 5", "6") == "mismatch"
    assert outcome("a + b = 5", "5") is None
    assert outcome("2x = 10", "5") is None


def test_a_text_that_holds_the_reference_is_neither_right_nor_wrong() -> None:
    assert outcome("to the east", r"\text{east}") == "text_overlap"
    assert outcome("not even", r"\text{even}") == "text_overlap"


def test_looser_rules_apply_only_when_asked_for() -> None:
    assert outcome("50", "0.5") == outcome("3.14", r"\pi") == "mismatch"
    assert outcome("50", "0.5", Rules(percent=True)) == "match"
    assert outcome(r"\frac12", "50", Rules(percent=True)) == "match"
    assert outcome("51", "0.5", Rules(percent=True)) == "mismatch"
    assert outcome("3.14", r"\pi", Rules(tolerance=1e-3)) == "match"
    assert outcome("3.14", r"\pi", Rules(tolerance=1e-4)) == "mismatch"
    assert outcome("x+0.0001", "x", Rules(tolerance=0.1)) == "mismatch"


# Expressions as trees, written down in LaTeX and computed by Python's own arithmetic.
NUMBERS = st.integers(-30, 30)
TREES = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner) | st.tuples(st.just("^"), inner, st.integers(0, 3)),
    max_leaves=6,
)


def written(tree: object) -> str:
    if isinstance(tree, int):
        return f"({tree})" if tree < 0 else str(tree)
    sign, left, right = tree  # type: ignore[misc]
    if sign == "/":
        return rf"\frac{{{written(left)}}}{{{written(right)}}}"
    if sign == "^":
        return rf"({written(left)})^{{{right}}}"
    return rf"({written(left)} {sign} {written(right)})".replace("*", r"\cdot")


def computed(tree: object) -> Fraction:
    if isinstance(tree, int):
        return Fraction(tree)
    sign, left, right = tree  # type: ignore[misc]
    if sign == "^" and not computed(left):
        return 0 / Fraction(right)  # 0^0 is refused
    operations: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
        "+": lambda one, other: one + other,
        "-": lambda one, other: one - other,
        "*": lambda one, other: one * other,
        "/": lambda one, other: one / other,
        "^": lambda one, other: one ** int(other),
    }
    return operations[sign](computed(left), computed(right))


@settings(deadline=None)
@given(TREES)
def test_arithmetic_agrees_with_that_of_python(tree: object) -> None:
    try:
        expected = computed(tree)
    except ZeroDivisionError:
        with pytest.raises(Unreadable):
            evaluate(tokens_of(written(tree)), Exact())
        return
    try:
        value = evaluate(tokens_of(written(tree)), Exact())
    except Unreadable:
        assert max(expected.numerator.bit_length(), expected.denominator.bit_length()) > 20  # only for being large
        return
    assert constant_of(value) == expected


SURDS = st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 50), st.sampled_from(["", r"\pi", "x", "i"])), min_size=1, max_size=4)


@settings(deadline=None)
@given(SURDS, SURDS)
def test_sums_of_roots_are_equal_exactly_when_their_values_are(one: list[tuple[int, int, str]], other: list[tuple[int, int, str]]) -> None:
    texts = ["+".join(rf"({factor})\sqrt{{{root}}}{letter}" for factor, root, letter in terms) for terms in (one, other)]
    tokens = [tokens_of(text) for text in texts]
    exact = equal(evaluate(tokens[0], Exact()), evaluate(tokens[1], Exact()))
    numeric = agree(evaluate(tokens[0], Numeric(0)), evaluate(tokens[1], Numeric(0)))
    assert exact == numeric


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_read_or_refused(one: str, other: str) -> None:
    assert outcome(one, one) in ("match", None)
    outcome(one, other)


ALPHABET = r"\frac{}sqrt()[]^_+-*/=<>,.;0123456789xyi% \pm\cup\text\infty&!|"


@settings(deadline=None)
@given(st.text(alphabet=ALPHABET, max_size=80))
def test_math_like_noise_can_be_read_or_refused(text: str) -> None:
    form = form_of(text)
    assert form is None or compare(form, form, Rules()) in ("match", None)


def test_reading_is_fast_whatever_the_text_is() -> None:
    import time

    draw = random.Random(0)
    began = time.monotonic()
    for _ in range(300):
        form_of("".join(draw.choice(ALPHABET) for _ in range(300)))
    for bomb in ("{" * 300, "(" * 300, "-" * 300, r"\frac" * 60, "9^{" * 99, "(x+1)^{64}" * 20, "9!" * 140, r"\sqrt{" * 40, "1," * 150):
        form_of(bomb)
    form_of(r"\frac{(x+y+z)^{64}}{(a+b+c)^{64}}")
    assert time.monotonic() - began < 10
