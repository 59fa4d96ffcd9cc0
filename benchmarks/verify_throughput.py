"""Verifications a second on real answers, with two grading processes, and how plain math-verify compares.

    python -m benchmarks.verify_throughput [--seconds 20] [--pairs 20000]

A verification is a completion in, a Verification out (extraction, first and last answer, verdict), through Grader.grade in the driver.
Answers are the golds of gsm8k/test (plain integers) and MATH-500 (all, and those that are no plain number), rewritten, changed or swapped
as in answer_pairs.py. "no repeats" asks no question twice; "as sampled" asks what many samples of few prompts ask, with equal questions
judged once. CPU seconds count the driver and the grading processes with their imports: on a machine that does other work, they say more
than time.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.answer_pairs import golds, math_like_pairs
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.grading.graders import Question, judge_cheaply
from w2sr.grading.numbers import parse_number
from w2sr.grading.verdicts import BATCH_ROWS
from w2sr.records import Prompt, Trace


def traces_of(pairs: list[tuple[str, str]]) -> tuple[list[Trace], dict[str, Prompt]]:
    """Return completions that end in the answers, and their prompts."""
    prompts = {reference: Prompt(reference, "train", "?", reference, None, "file", "{}") for _, reference in pairs}
    text = "We set up an equation, solve it and check the result. " * 8
    return [
        Trace(str(n), reference, "m", 0, f"{text}\nThe answer is \\boxed{{{answer}}}.", "stop", 1, 1, 0, "", "", "", None)
        for n, (answer, reference) in enumerate(pairs)
    ], prompts


def measure(name: str, pairs: list[tuple[str, str]]) -> None:
    """Print the rate over all pairs, and over those after the first thousand (processes started, caches filled)."""
    traces, prompts = traces_of(pairs)
    undecided = sum(judge_cheaply(Question("math", *pair)) is None for pair in set(pairs))
    clear_caches()
    with Grader(VerifyConfig(workers=2)) as grader:
        began, cpu = time.perf_counter(), cpu_seconds()
        correct = 0
        for start in range(0, len(traces), BATCH_ROWS):
            correct += sum(row.verdict == "correct" for row in grader.grade(traces[start : start + BATCH_ROWS], prompts))
        seconds = time.perf_counter() - began
        pids = [pid for worker in grader._pool._workers for pid in (worker.process.pid, worker._child) if pid]
        cpu = cpu_seconds() - cpu + sum(map(cpu_of, pids))
    share = f"{undecided / len(set(pairs)):.1%} by math-verify"
    rates = f"{seconds:.1f} s | {len(pairs) / seconds:,.0f} | {cpu:.1f} s | {len(pairs) / cpu:,.0f}"
    print(f"| {name} | {len(pairs):,} | {correct / len(pairs):.0%} | {share} | {rates} |", flush=True)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it has ended."""
    return sum(os.times()[:4])


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def clear_caches() -> None:
    """Forget every answer that was read."""
    from w2sr.grading import forms

    for cache in (forms.form_of, forms.exact_value, forms.numeric_value):
        cache.cache_clear()


def plain_math_verify(pairs: list[tuple[str, str]], limit_s: float) -> None:
    """Print the rate of math-verify alone, in this one process, on as many pairs as fit into `limit_s`."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)
    done, began, cpu = 0, time.perf_counter(), cpu_seconds()
    for answer, reference in pairs:
        verify(parse(f"\\boxed{{{reference}}}"), parse(f"\\boxed{{{answer}}}"))
        done += 1
        if time.perf_counter() - began > limit_s:
            break
    seconds = time.perf_counter() - began
    cpu = cpu_seconds() - cpu
    rates = f"{seconds:.1f} s | {done / seconds:,.0f} | {cpu:.1f} s | {done / cpu:,.0f}"
    print(f"| math-verify alone, one process | {done:,} | | all | {rates} |", flush=True)


def main() -> None:
    """Measure and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=20, help="how long math-verify alone may take")
    arguments.add_argument("--pairs", type=int, default=20_000)
    given = arguments.parse_args()
    integers, math500 = golds("gsm8k"), golds("math500")
    symbolic = [gold for gold in math500 if parse_number(gold) is None]
    draw = random.Random(0)
    whole = [
        (draw.choice(integers), draw.choice(integers)) if draw.random() < 0.5 else (gold, gold)
        for gold in draw.choices(integers, k=given.pairs)
    ]
    fresh = list(dict.fromkeys(math_like_pairs(given.pairs * 3, 1, math500)))[: given.pairs]
    fresh_symbolic = list(dict.fromkeys(math_like_pairs(given.pairs * 3, 2, symbolic)))[: given.pairs]
    print("| answers | verifications | correct | difficult | time | a second | CPU | a CPU second |\n|---|---|---|---|---|---|---|---|")
    measure("plain integers (gsm8k)", whole)
    measure("MATH-500, as sampled", math_like_pairs(given.pairs, 3, math500))
    measure("MATH-500, no repeats", fresh)
    measure("MATH-500 without plain numbers, as sampled", math_like_pairs(given.pairs, 4, symbolic))
    measure("MATH-500 without plain numbers, no repeats", fresh_symbolic)
    plain_math_verify(math_like_pairs(given.pairs, 4, symbolic), given.seconds)


if __name__ == "__main__":
    main()
