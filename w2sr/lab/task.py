"""Texts of the lab task, reasoning-gym's `chain_sum` ("4 + 3 - 9 ="): questions, reference chains of thought, other styles.

Everything here is a pure function of its arguments (and of the random generator it is given), and imports no heavy library.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

QUESTION_PREFIX = "State the final answer to the following arithmetic problem:"
REASONING_SYSTEM_PROMPT = "Think step by step."
ANSWER_MARK = "####"
TASK_NAME = "chain_sum"

_EXPRESSION = re.compile(r"-?\d+(?: [+-] -?\d+)*")

Step = tuple[str, int]
"""One operation: the sign ("+" or "-") and the term it applies to."""


def question_text(expression: str) -> str:
    """The question exactly as reasoning-gym words it."""
    return f"{QUESTION_PREFIX} {expression} ="


def parse_expression(expression: str) -> tuple[int, list[Step]]:
    """Split "4 + 3 - 9" into its first term and its operations. Raises ValueError for any other shape."""
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(f"not a chain of sums and differences: {expression!r}; expected something like '4 + 3 - 9'")
    pieces = expression.split(" ")
    steps = [(sign, int(term)) for sign, term in zip(pieces[1::2], pieces[2::2], strict=True)]
    return int(pieces[0]), steps


def apply_step(total: int, step: Step) -> int:
    sign, term = step
    return total + term if sign == "+" else total - term


def answer_of(expression: str) -> int:
    total, steps = parse_expression(expression)
    for step in steps:
        total = apply_step(total, step)
    return total


def sample_expression(rng: random.Random, min_terms: int, max_terms: int) -> str:
    """One expression of one-digit terms, from the distribution that `chain_sum` draws from (not its random stream)."""
    num_terms = rng.randint(min_terms, max_terms)
    pieces = [str(rng.randint(0, 9))]
    for _ in range(num_terms - 1):
        pieces += [rng.choice("+-"), str(rng.randint(0, 9))]
    return " ".join(pieces)


def final_answer(value: int) -> str:
    """The last line of every chain and the whole of a direct answer: "#### 7"."""
    return f"{ANSWER_MARK} {value}"


def worked_chain(expression: str, group_sizes: list[int] | None = None) -> str:
    """A chain of thought that ends in the final answer.

    `group_sizes` says how many operations each written step merges, in order, and must sum to the number of operations;
    by default every step holds one: "So 4 + 3 = 7; 7 - 9 = -2" and then the answer on a line of its own.
    """
    total, steps = parse_expression(expression)
    sizes = [1] * len(steps) if group_sizes is None else group_sizes
    assert sum(sizes) == len(steps), f"group sizes {sizes} do not cover {len(steps)} operations"
    lines = []
    for group in _groups(steps, sizes):
        text = f" {total}" + "".join(f" {sign} {term}" for sign, term in group)
        for step in group:
            total = apply_step(total, step)
        lines.append(f"{text} = {total}")
    return f"So{';'.join(lines)}\n{final_answer(total)}" if lines else final_answer(total)


def _groups(steps: list[Step], sizes: list[int]) -> Iterator[list[Step]]:
    start = 0
    for size in sizes:
        yield steps[start : start + size]
        start += size


def hasty_group_sizes(rng: random.Random, num_operations: int, max_merged: int) -> list[int]:
    """Random sizes of 1 to `max_merged` for a hasty chain, at least one of them merged where that is possible."""
    sizes: list[int] = []
    while sum(sizes) < num_operations:
        low = 2 if not sizes else 1
        left = num_operations - sum(sizes)
        sizes.append(min(rng.randint(low, max(low, max_merged)), left))
    rng.shuffle(sizes)
    return sizes


def reference_trace(task_name: str, item: dict[str, Any]) -> str | None:
    """The gold chain of thought for a reasoning-gym item (question, answer, metadata); None for a task the lab does not know.

    Also None when a `chain_sum` item is not a plain chain of whole numbers, so that a caller never trains on a guess.
    """
    if task_name != TASK_NAME:
        return None
    metadata = item.get("metadata") or {}
    expression = str(metadata.get("expression", ""))
    if not _EXPRESSION.fullmatch(expression):
        return None
    return worked_chain(expression)
