"""Five hundred hostile answers: none crashes, hangs or passes."""

import os
import random
from collections import Counter

from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.records import Prompt, Trace

REFERENCES = ["5", r"\frac{1}{2}", "x+1", r"\text{east}", "(1,2)", r"\sqrt{2}"]
HOMOGLYPHS = {"5": "５٥৫५５", "x": "хⅹ×χ", "1": "１١Ⅰl|", "2": "２٢²₂", "e": "еℯ", "a": "аα", "+": "＋➕"}


def deep(draw: random.Random) -> str:
    opening, closing = draw.choice(
        [("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), (r"\left(", r"\right)"), ("-(", ")"), ("x^{", "}")]
    )
    depth = draw.randint(30, 3000)
    return opening * depth + draw.choice(["6", "x", ""]) + closing * draw.choice([depth, depth - 1, 0])


def power(draw: random.Random) -> str:
    digits = [str(draw.randint(2, 99)) for _ in range(draw.randint(2, 6))]
    joined = "^{".join(digits) + "}" * (len(digits) - 1)
    return draw.choice(
        [joined, "**".join(digits), "^".join(digits), f"({joined})!", f"10^{{{10 ** draw.randint(3, 9)}}}", f"x^{{{joined}}}"]
    )


def factorials(draw: random.Random) -> str:
    return draw.choice(
        [f"{draw.randint(20, 10**7)}{'!' * draw.randint(1, 40)}", r"\binom{10^9}{5\cdot10^8}", "((9!)!)!", r"\prod_{k=1}^{10^9} k"]
    )


def sums(draw: random.Random) -> str:
    command = draw.choice([r"\int_0^{10} e^{x^{x^x}} dx", r"\sum_{n=1}^{10^{12}} \frac{1}{n^3}", r"\lim_{n\to\infty} (1+\frac1n)^{n^n}"])
    return f"{command} + {draw.randint(6, 99)}"


def homoglyphs(draw: random.Random) -> str:
    """Look like an answer and are not: a letter of another script, never another script's digits alone (these are numbers)."""
    return draw.choice(["х+1", "ⅹ + 1", "еast", "eаst", "(l,2)", "x➕1", "√２x", "⅟2+1", "x＋１x", "𝟝𝟝", "\u0660.٥x", "(1‚2)", "１/٣"])


def control(draw: random.Random) -> str:
    strange = ["\x00", "\x1b[2J", "\u202e", "\u200b", "\ufeff", "\ud7ff", "\x7f", "\u2028", "\x0c", "\U000e0041"]
    return "".join(draw.choice([*strange, "6", "x", "{", r"\frac"]) for _ in range(draw.randint(1, 60)))


def long(draw: random.Random) -> str:
    piece = draw.choice(["9", "x+", "(", r"\frac", "1,", "東", "a ", "{}", "\\", "$", r"\text{no}", "-"])
    return piece * (1_000_000 // len(piece.encode()))


def code(draw: random.Random) -> str:
    return draw.choice(
        [
            '__import__("os").system("exit")',
            "lambda: 5",
            "5 if 1 else 6; import os",
            r"\input{/etc/passwd}",
            r"\def\x{\x\x}\x",
            "eval('6')",
            "{{7*7}}",
            "%s%n",
        ]
    )


def bombs(draw: random.Random) -> str:
    nested = [r"\boxed{" * 5000 + "6" + "}" * 5000, r"\boxed{" * 30 + "6", r"\begin{pmatrix}" * 40]
    return draw.choice([*nested, r"\begin{cases}" * 9, "&" * 99, "\\\\" * 200])


def almost(draw: random.Random) -> str:
    """Nearly right: what a sloppy comparison would let pass."""
    numbers = [
        "5 or 6",
        "5, 6",
        "not 5",
        "5 million",
        "5e5",
        "5.0000001",
        "5 = 6",
        "0.5 0.5",
        "1/2/2",
        "0.50000001",
        "5^5",
        "-5",
        "5i",
        "5!",
    ]
    letters = ["x+1+0.0000001", "x+1 = 0", "|x+1|+1", "x+1+\\epsilon", r"\frac{1}{2}x", r"\sqrt{2}+10^{-30}", "1.4142135", "1.41421356237"]
    others = ["west", "not east", "east or west", "(2,1)", "[1,2]", "nan", r"\infty", "1/0", "{5, 6}", "True", "None", "[]"]
    return draw.choice([*numbers, *letters, *others])


KINDS = [deep, power, factorials, sums, homoglyphs, control, long, code, bombs, almost]


def test_five_hundred_hostile_answers_neither_hang_nor_crash_nor_pass() -> None:
    draw = random.Random(20260)
    answers = [KINDS[number % len(KINDS)](draw) for number in range(500)]
    prompts = {str(n): Prompt(str(n), "test", "?", REFERENCES[n % len(REFERENCES)], None, "file", "{}") for n in range(500)}
    marks = (r"\boxed{%s}", "#### %s", "<answer>%s</answer>", "The answer is: %s")
    texts = [marks[n // 10 % 4].replace("%s", answer) for n, answer in enumerate(answers)]
    traces = [Trace(str(n), str(n), "m", 0, text, "stop", 1, 1, 0, "", "", "", None) for n, text in enumerate(texts)]
    began = sum(os.times()[:4])
    with Grader(VerifyConfig(timeout_s=0.5, workers=2)) as grader:
        found = grader.grade(traces, prompts)
    passed = [
        (answers[n], prompts[str(n)].answer) for n, row in enumerate(found) if row.verdict == "correct" or row.first_verdict == "correct"
    ]
    assert len(found) == 500
    assert passed == []
    assert Counter(row.verdict for row in found)["unverifiable"] > 100
    assert sum(os.times()[:4]) - began < 120  # CPU seconds of all processes: other work on the machine does not count
