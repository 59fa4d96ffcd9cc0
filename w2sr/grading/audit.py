"""How far the verdicts can be trusted: a sample of them is checked a second time by other means.

The second check shares no parser with the first. What was proven by our own reader is given to math-verify; what math-verify decided is
computed numerically by our own reader; an answer that was not found is looked for by math-verify's own extraction; where a scorer decided,
the stored answer is compared. A disagreement says that one of the two is wrong, not which: all are listed for people to look at.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from w2sr.grading.algebra import NUM_POINTS, agree
from w2sr.grading.extract import extract_answers
from w2sr.grading.forms import form_of, numeric_value
from w2sr.grading.grade import Grader
from w2sr.grading.graders import Question, judge_cheaply
from w2sr.grading.numbers import parse_number
from w2sr.grading.verdicts import Subject
from w2sr.records import Prompt, Trace, Verdict, Verification
from w2sr.tables import iter_table

AUDIT = "audit.json"
CONFIDENCE = 0.95
_TAIL_CHARS = 400  # of a trace without a final answer, in which math-verify looks for one
_MOST_LISTED = 100
# The question each verdict is asked again, and what a disagreement means.
RATES: dict[Verdict, str] = {"correct": "false_positive", "incorrect": "false_negative", "unverifiable": "right_but_unverifiable"}


@dataclass(frozen=True)
class Estimate:
    """A rate among the verdicts of one kind, with a Clopper-Pearson interval (Biometrika 26, 1934) of 95 %.

    `population` verdicts of the kind there are, `checked` of them were checked (those without a second opinion left out), and the second
    check says otherwise in `disagreements`.
    """

    population: int
    checked: int
    no_opinion: int
    disagreements: int
    rate: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """A disagreement, for people."""

    trace_id: str
    verdict: str
    reason: str
    form: str
    answer: str | None
    reference: str
    second: str


@dataclass(frozen=True)
class Audit:
    """The audit of one teacher's verdicts. `forms` counts (checked, disagreements) by the form of the answer."""

    estimates: Mapping[str, Estimate]
    forms: Mapping[str, tuple[int, int]]
    cases: Sequence[Case]

    @property
    def num_checked(self) -> int:
        """Verdicts on which there is a second opinion."""
        return sum(estimate.checked for estimate in self.estimates.values())

    @property
    def num_disagreements(self) -> int:
        """Verdicts with which the second opinion disagrees."""
        return sum(estimate.disagreements for estimate in self.estimates.values())

    def to_json(self) -> str:
        """Return the audit as JSON text; of many disagreements the first hundred."""
        values = {
            "confidence": CONFIDENCE,
            "estimates": {name: asdict(estimate) for name, estimate in self.estimates.items()},
            "forms": {form: {"checked": checked, "disagreements": wrong} for form, (checked, wrong) in sorted(self.forms.items())},
            "cases": [asdict(case) for case in self.cases[:_MOST_LISTED]],
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def audit(subject: Subject, prompts: Mapping[str, Prompt], grader: Grader, size: int) -> Audit:
    """Check `size` of a teacher's verdicts a second time: a third of each verdict, within it in proportion to the forms of answers.

    Verdicts by vote or by judge are left out: there is no reference to check them against. The sample is a function of the trace ids.
    """
    chosen, populations = choose(iter_table(subject.verdicts, Verification), size)
    wanted = {row.trace_id: row for rows in chosen.values() for row in rows}
    texts = {trace.trace_id: trace.text for trace in iter_table(subject.traces, Trace) if trace.trace_id in wanted} if wanted else {}
    opinions = second_opinions([(row, texts[row.trace_id], prompts[row.prompt_id]) for row in wanted.values()], grader)
    checked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    cases = []
    estimates = {}
    for verdict, name in RATES.items():
        heard = [(row, opinions[row.trace_id]) for row in chosen.get(verdict, ()) if opinions[row.trace_id] is not None]
        against = [row for row, right in heard if right != (verdict == "correct")]
        estimates[name] = estimate(populations[verdict], len(heard), len(chosen.get(verdict, ())) - len(heard), len(against))
        checked.update(form_name(row.last_answer) for row, _ in heard)
        wrong.update(form_name(row.last_answer) for row in against)
        cases += [_case(row, prompts[row.prompt_id]) for row in against]
    return Audit(estimates, {form: (checked[form], wrong[form]) for form in checked}, cases)


def choose(rows: Iterable[Verification], size: int) -> tuple[dict[Verdict, list[Verification]], Counter[Verdict]]:
    """Return the sample of each verdict, and how many rows each verdict has. Memory is bounded by size times the number of forms."""
    quota = -(-size // len(RATES))
    strata: dict[tuple[Verdict, str], list[tuple[int, str, Verification]]] = defaultdict(list)
    sizes: Counter[tuple[Verdict, str]] = Counter()
    for row in rows:
        if row.reason in ("error", "no_reference") or row.method != "reference":
            continue
        key = (row.verdict, form_name(row.last_answer))
        sizes[key] += 1
        # The smallest hashes are a random sample, the same in every order of rows. Negated: the heap's root is the largest of them.
        rank = -int.from_bytes(hashlib.sha256(row.trace_id.encode()).digest()[:8], "big")
        heap, item = strata[key], (rank, row.trace_id, row)
        if len(heap) < quota:
            heapq.heappush(heap, item)
        elif quota and rank > heap[0][0]:
            heapq.heapreplace(heap, item)
    populations: Counter[Verdict] = Counter()
    for (verdict, _), count in sizes.items():
        populations[verdict] += count
    chosen: dict[Verdict, list[Verification]] = {}
    for verdict in populations:
        forms = {form: count for (kind, form), count in sorted(sizes.items()) if kind == verdict}
        for form, share in shares(forms, quota).items():
            ranked = sorted(strata[verdict, form], key=lambda item: (-item[0], item[1]))
            chosen.setdefault(verdict, []).extend(row for _, _, row in ranked[:share])
    return chosen, populations


def shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide `total` (or all there are, if fewer) in proportion to `sizes`: whole numbers, by largest remainder."""
    population = sum(sizes.values())
    total = min(total, population)
    exact = {name: total * size / population for name, size in sizes.items()}
    found = {name: int(share) for name, share in exact.items()}
    for name in sorted(sizes, key=lambda name: (found[name] - exact[name], name))[: total - sum(found.values())]:
        found[name] += 1
    return found


def estimate(population: int, checked: int, no_opinion: int, disagreements: int) -> Estimate:
    """Return the rate of disagreements among those checked, with its interval; without any checked it is anywhere from 0 to 1."""
    from scipy.stats import binomtest

    if not checked:
        return Estimate(population, 0, no_opinion, 0, None, 0.0, 1.0)
    interval = binomtest(disagreements, checked).proportion_ci(CONFIDENCE, method="exact")
    low, high = round(float(interval.low), 6), round(float(interval.high), 6)
    return Estimate(population, checked, no_opinion, disagreements, round(disagreements / checked, 6), low, high)


def form_name(answer: str | None) -> str:
    """Return the form of an answer, for strata: "none", "number", "value", "words", "list", ..., "other"."""
    if answer is None:
        return "none"
    if parse_number(answer) is not None:
        return "number"
    form = form_of(answer)
    return "other" if form is None else form.kind.split()[0]


def second_opinions(rows: Sequence[tuple[Verification, str, Prompt]], grader: Grader) -> dict[str, bool | None]:
    """Return by trace id whether the answer is right, by other means than those of the verdict; None where these say nothing."""
    asked: dict[str, Question] = {}
    opinions: dict[str, bool | None] = {}
    for row, text, prompt in rows:
        question = _other_question(row, text, prompt, grader.grader)
        if isinstance(question, Question):
            asked[row.trace_id] = question
        else:
            opinions[row.trace_id] = question
    verdicts = grader.judge_by_math_verify(list(asked.values()))
    for trace_id, judgement in zip(asked, verdicts, strict=True):
        opinions[trace_id] = None if judgement.verdict == "unverifiable" else judgement.verdict == "correct"
    if grader.grader == "reasoning_gym":
        # A task may have many right answers: one that differs from the stored one is not refuted by that.
        opinions.update({row.trace_id: None for row, _, _ in rows if row.verdict == "correct" and opinions[row.trace_id] is False})
    return opinions


def _other_question(row: Verification, text: str, prompt: Prompt, grader: str) -> Question | bool | None:
    reference = prompt.answer
    if reference is None:
        return None
    found = extract_answers(text)
    if row.verdict == "unverifiable" or found is None:
        return Question("free", text[-_TAIL_CHARS:], reference) if grader in ("math", "exact") else None
    if grader == "choice":
        return _lone_letter(found.last) == _lone_letter(reference) if _lone_letter(reference) else None
    if grader == "reasoning_gym" or judge_cheaply(Question("math", found.last, reference)) is not None:
        return Question("math", found.last, reference)
    return numerically_equal(found.last, reference)


def numerically_equal(answer: str, reference: str) -> bool | None:
    """Return whether two scalar expressions have the same values at random points; None when they are not both such expressions."""
    one, other = form_of(answer), form_of(reference)
    if one is None or other is None or not one.kind == other.kind == "value":
        return None
    pairs = [(numeric_value(one.tokens, point), numeric_value(other.tokens, point)) for point in range(NUM_POINTS)]
    return None if any(None in pair for pair in pairs) else all(agree(*pair) for pair in pairs)


def _lone_letter(answer: str) -> str | None:
    found = re.findall(r"(?<![A-Za-z\\])([A-Z])(?![A-Za-z])", answer)
    return found[0] if found else None


def _case(row: Verification, prompt: Prompt) -> Case:
    second = {"correct": "not equal", "incorrect": "equal", "unverifiable": "an equal answer is in the text"}[row.verdict]
    return Case(row.trace_id, row.verdict, row.reason, form_name(row.last_answer), row.last_answer, prompt.answer or "", second)
