"""How one final answer is judged against its reference.

Three outcomes, never two: what cannot be decided is "unverifiable" with a reason, not "incorrect".
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from w2sr.grading.numbers import parse_number
from w2sr.prompts.gym import scorer_of
from w2sr.records import Verdict

MAX_CHARS = 1000  # a longer answer is not handed to a symbolic parser
# What a parser or a scorer may raise on a strange answer. Anything else ends the worker process, and only that answer is lost.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

# Words, numbers and sums without powers, products, calls or exponents: no scorer can turn these into a long computation, so they need no
# killable worker.
_HARMLESS = re.compile(r"(?!.*[0-9][eE][-+0-9])[-0-9A-Za-z .,+=;:#]{1,64}", re.ASCII)


class Judgement(NamedTuple):
    """A verdict and the short code of its reason."""

    verdict: Verdict
    reason: str


MATCH = Judgement("correct", "match")
MISMATCH = Judgement("incorrect", "mismatch")
UNPARSABLE = Judgement("unverifiable", "unparsable")
UNPARSABLE_REFERENCE = Judgement("unverifiable", "unparsable_reference")
NO_REFERENCE = Judgement("unverifiable", "no_reference")


class Question(NamedTuple):
    """What a grading process is asked. `reference` is the reference answer, or for reasoning-gym the prompt's metadata."""

    grader: str
    answer: str
    reference: str


def judge_exact(answer: str, reference: str) -> Judgement:
    """The same text, white space and math dollars aside, or exactly the same number."""
    return _judge_plain(answer, reference) or MISMATCH


def judge_cheaply(question: Question) -> Judgement | None:
    """Return the judgement where it takes microseconds and cannot go wrong; None where a killable worker has to decide."""
    if question.grader == "exact":
        return judge_exact(question.answer, question.reference)
    if question.grader == "math":
        return _judge_plain(question.answer, question.reference) or _refuse_to_parse(question.answer, question.reference)
    return judge_by_scorer(question.answer, question.reference) if _HARMLESS.fullmatch(question.answer) else None


def judge_fully(question: Question) -> Judgement:
    """Return the judgement by math-verify or by the task's scorer. May run for ever or eat all memory: call it in a worker only."""
    if question.grader == "math":
        return judge_math(question.answer, question.reference)
    return judge_by_scorer(question.answer, question.reference)


def judge_math(answer: str, reference: str) -> Judgement:
    """Equivalent expressions, by math-verify. Its own timeouts are off (they need SIGALRM): whoever calls this keeps the time."""
    from math_verify import verify

    expected, found = _parse_reference(reference), _parse_latex(answer)
    if not _is_parsed(expected) and _is_parsed(found):
        return UNPARSABLE_REFERENCE
    if not _is_parsed(found) and _is_parsed(expected):
        return UNPARSABLE
    try:
        return MATCH if verify(expected, found, timeout_seconds=None, raise_on_error=True) else MISMATCH
    except FAULTS:
        return UNPARSABLE


def judge_by_scorer(answer: str, metadata: str) -> Judgement:
    """The reasoning-gym task's own scorer: 1.0 is correct, less is incorrect; an answer on which it raises is unparsable."""
    scorer = _scorer(metadata)
    if scorer is None:
        return NO_REFERENCE
    try:
        return MATCH if scorer(answer) >= 1.0 else MISMATCH
    except FAULTS:
        return UNPARSABLE


def has_scorer(metadata: str) -> bool:
    """Return whether a prompt's metadata is that of a reasoning-gym item."""
    item = json.loads(metadata or "{}")
    return isinstance(item, dict) and "task" in item and "item" in item


def _judge_plain(answer: str, reference: str) -> Judgement | None:
    if answer.strip().strip("$").split() == reference.strip().strip("$").split():
        return MATCH
    found = parse_number(answer)
    expected = parse_number(reference) if found is not None else None
    if found is None or expected is None:
        return None
    return MATCH if found == expected else MISMATCH


def _refuse_to_parse(answer: str, reference: str) -> Judgement | None:
    for text, judgement in ((answer, UNPARSABLE), (reference, UNPARSABLE_REFERENCE)):
        # "120 200" is no single answer, but math-verify would read a mixed number, 320. ("1 1/2" is one, and "3, 5" a list.)
        pieces = text.split() if len(text) <= MAX_CHARS else []
        several = len(pieces) > 1 and all(not {"/", "\\"} & set(piece) and parse_number(piece) is not None for piece in pieces)
        if several or len(text) > MAX_CHARS:
            return judgement
    return None


_scorer = lru_cache(maxsize=1024)(scorer_of)


@lru_cache(maxsize=1024)
def _parse_reference(reference: str) -> list[Any]:
    return _parse_latex(reference)


def _parse_latex(text: str) -> list[Any]:
    from math_verify import parse

    try:
        return list(parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None, raise_on_error=True))
    except FAULTS:
        return []


def _is_parsed(parsed: list[Any]) -> bool:
    """math-verify returns expressions where it could parse and the bare text besides; text alone means that it could not."""
    return any(not isinstance(value, str) for value in parsed)
