"""How one final answer is judged against its reference.

Three outcomes, never two: what cannot be decided is "unverifiable" with a reason, not "incorrect".
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from w2sr.grading.choice import letter_of, options_of
from w2sr.grading.compare import Rules, compare
from w2sr.grading.forms import form_of
from w2sr.grading.latex import clean
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
# A run of bare words. math-verify multiplies their letters, or picks a number out of the sentence.
_SENTENCE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}[ ,.]+[A-Za-z]{2,}")
# Towers of powers, exponents and factorials without end, programs: a symbolic parser would only burn its timeout on them.
_HOPELESS = re.compile(
    r"(?:\^|\*\*)\s*[{(]?\s*\d+\s*(?:\^|\*\*)|(?:\^|\*\*)\s*[{(]?\d{5,}|\d{4,}\s*!|!\s*!|\^\{?\d+\}?\s*\)\s*!|__|\\(?:def|input|write)(?![A-Za-z])"
)
_MAX_DEPTH = 30
EXACT_RULES = Rules()


class Judgement(NamedTuple):
    """A verdict and the short code of its reason."""

    verdict: Verdict
    reason: str


MATCH = Judgement("correct", "match")
MISMATCH = Judgement("incorrect", "mismatch")
UNPARSABLE = Judgement("unverifiable", "unparsable")
UNPARSABLE_REFERENCE = Judgement("unverifiable", "unparsable_reference")
NO_REFERENCE = Judgement("unverifiable", "no_reference")
_OUTCOMES = {
    "match": MATCH,
    "mismatch": MISMATCH,
    "units": Judgement("unverifiable", "units"),
    "order": Judgement("unverifiable", "order"),
    "text_overlap": Judgement("unverifiable", "text_overlap"),
}


class Question(NamedTuple):
    """What is judged. `reference` is the reference answer; for reasoning-gym the prompt's metadata. `metadata` matters to choice only."""

    grader: str
    answer: str
    reference: str
    metadata: str = ""


def judge_exact(answer: str, reference: str) -> Judgement:
    """The same text, white space and math dollars aside, or exactly the same number."""
    return _judge_plain(answer, reference, EXACT_RULES) or MISMATCH


def judge_choice(answer: str, reference: str, metadata: str) -> Judgement:
    """The same letter. The reference may be a letter or the text of an option."""
    options = options_of(metadata)
    expected = letter_of(reference, options)
    if expected is None:
        return UNPARSABLE_REFERENCE
    found = letter_of(answer, options)
    if found is None:
        return UNPARSABLE
    return MATCH if found == expected else MISMATCH


def judge_cheaply(question: Question, rules: Rules = EXACT_RULES) -> Judgement | None:
    """Return the judgement where it takes microseconds and is proven; None where a killable worker has to decide."""
    answer, reference = question.answer, question.reference
    if question.grader == "math":
        return _judge_plain(answer, reference, rules) or judge_forms(answer, reference, rules) or _refuse_to_parse(answer, reference)
    if question.grader == "exact":
        return judge_exact(answer, reference)
    if question.grader == "choice":
        return judge_choice(answer, reference, question.metadata)
    return judge_by_scorer(answer, reference) if _HARMLESS.fullmatch(answer) else None


def judge_forms(answer: str, reference: str, rules: Rules = EXACT_RULES) -> Judgement | None:
    """Return what can be proven without math-verify (see forms.py), or None."""
    found = form_of(answer)
    expected = form_of(reference) if found is not None else None
    outcome = compare(found, expected, rules) if found is not None and expected is not None else None
    return _OUTCOMES[outcome] if outcome is not None else None


def judge_fully(question: Question) -> Judgement:
    """Return the judgement by math-verify or by the task's scorer. May run for ever or eat all memory: call it in a worker only."""
    if question.grader == "math":
        return judge_math(question.answer, question.reference)
    if question.grader == "free":
        return judge_free(question.answer, question.reference)
    return judge_by_scorer(question.answer, question.reference)


def judge_free(text: str, reference: str) -> Judgement:
    """Whatever math-verify takes for the answer in a text: no verdict of ours, but a second opinion on where the answer is (audit.py)."""
    from math_verify import parse, verify

    try:
        found = parse(text, parsing_timeout=None, raise_on_error=True)
        return MATCH if verify(list(_parse_latex(reference)), found, timeout_seconds=None, raise_on_error=True) else MISMATCH
    except FAULTS:
        return UNPARSABLE


def judge_math(answer: str, reference: str) -> Judgement:
    """Equivalent expressions, by math-verify. Its own timeouts are off (they need SIGALRM): whoever calls this keeps the time."""
    from math_verify import verify

    expected, found = _parse_latex(reference), _parse_latex(answer)
    if not _is_parsed(expected) and _is_parsed(found):
        return UNPARSABLE_REFERENCE
    try:
        if verify(list(expected), list(found), timeout_seconds=None, raise_on_error=True):
            return MATCH
    except FAULTS:
        return UNPARSABLE
    return MISMATCH if _is_parsed(found) else UNPARSABLE


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


def _judge_plain(answer: str, reference: str, rules: Rules) -> Judgement | None:
    if answer == reference and answer:
        return MATCH
    if answer.isdecimal() and reference.isdecimal() and answer.isascii() and reference.isascii() and len(answer) + len(reference) < 80:
        if int(answer) == int(reference):
            return MATCH
    elif answer.strip().strip("$").split() == reference.strip().strip("$").split():
        return MATCH
    found = parse_number(answer)
    expected = parse_number(reference) if found is not None else None
    if found is None or expected is None:
        return None
    if found == expected or (rules.percent and (found == 100 * expected or expected == 100 * found)):
        return MATCH
    return MATCH if rules.tolerance and abs(found - expected) <= rules.tolerance * abs(expected) else MISMATCH


def _refuse_to_parse(answer: str, reference: str) -> Judgement | None:
    for text, judgement in ((answer, UNPARSABLE), (reference, UNPARSABLE_REFERENCE)):
        if len(text) > MAX_CHARS or not clean(text).isascii() or _SENTENCE.search(text) or "\0" in text or _is_hopeless(text):
            return judgement
        # "120 200" is no single answer, but math-verify would read a mixed number, 320. ("1 1/2" is one, and "3, 5" a list.)
        pieces = text.split()
        if len(pieces) > 1 and all(not {"/", "\\"} & set(piece) and parse_number(piece) is not None for piece in pieces):
            return judgement
    return None


def _is_hopeless(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH or text.count("\\begin") > 8 or _HOPELESS.search(text) is not None


_scorer = lru_cache(maxsize=1024)(scorer_of)


@lru_cache(maxsize=4096)
def _parse_latex(text: str) -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig, parse

    # The second of math-verify's extractions would take any number out of a text that is no expression.
    boxed = f"\\boxed{{{text.strip().strip('$')}}}"
    try:
        return tuple(parse(boxed, extraction_config=[LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True))
    except FAULTS:
        return ()


def _is_parsed(parsed: tuple[Any, ...]) -> bool:
    """math-verify returns expressions where it could parse and the bare text besides; text alone means that it could not."""
    return any(not isinstance(value, str) for value in parsed)
