"""Judge traces: one Verification for each trace, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from w2sr.errors import UserError
from w2sr.grading.choice import extract_choices
from w2sr.grading.compare import Rules
from w2sr.grading.config import VerifyConfig
from w2sr.grading.extract import Answers, extract_answers
from w2sr.grading.graders import NO_REFERENCE, Judgement, Question, has_scorer, judge_cheaply
from w2sr.grading.workers import GradingPool
from w2sr.records import Prompt, Trace, Verification

_STORED_CHARS = 500  # of an answer in a Verification; a longer one ends in an ellipsis there (it is judged whole)


class Grader:
    """Judges traces. Grading processes are started when the first difficult answer comes and kept until the end. For one thread."""

    def __init__(self, config: VerifyConfig) -> None:
        self.grader = config.grader
        self._config = config
        self._rules = Rules(config.percent, config.tolerance)
        self._pool = GradingPool(config.grader, config.workers, config.timeout_s)

    def grade(self, traces: Sequence[Trace], prompts: Mapping[str, Prompt]) -> list[Verification]:
        """Return the verdict on each of `traces`, in their order; `prompts` maps prompt_id to the prompt each of them answers.

        The last final answer decides (see extract.py); the first is judged as well. Without one a trace is unverifiable: "error" (the
        engine failed), "truncated" (the token limit ended it) or "no_answer". Other reasons: "match"; "mismatch"; and, all unverifiable,
        "no_reference", "unparsable", "unparsable_reference", "units", "order", "text_overlap", "timeout", "memory", "crashed". Raises
        UserError when the grader is reasoning_gym and a prompt is not from there.
        """
        self._refuse_foreign_prompts(traces, prompts)
        extract = extract_choices if self.grader == "choice" else extract_answers
        answers = [extract(trace.text) for trace in traces]
        judged = self.judge(
            question
            for trace, found in zip(traces, answers, strict=True)
            if found is not None
            for question in self._questions(found, prompts[trace.prompt_id])
        )
        verifications = []
        for trace, found in zip(traces, answers, strict=True):
            questions = self._questions(found, prompts[trace.prompt_id]) if found is not None else ()
            if questions:
                first, last = judged[questions[0]], judged[questions[-1]]
            else:
                first = last = without_question(trace, found)
            verifications.append(verification(trace, found, first, last))
        return verifications

    def judge(self, questions: Iterable[Question]) -> dict[Question, Judgement]:
        """Return the judgement of each question. Equal questions are judged once."""
        judged: dict[Question, Judgement] = {}
        difficult: dict[Question, None] = {}
        for question in questions:
            if question in judged or question in difficult:
                continue
            judgement = judge_cheaply(question, self._rules)
            if judgement is None:
                difficult[question] = None
            else:
                judged[question] = judgement
        if difficult:
            judged.update(zip(difficult, self._pool.judge(list(difficult)), strict=True))
        return judged

    def judge_by_math_verify(self, questions: Sequence[Question]) -> list[Judgement]:
        """Return math-verify's own judgement of each question (grader "math" or "free"), whatever this grader is."""
        if self.grader == "math":
            return self._pool.judge(questions)
        with GradingPool("math", self._config.workers, self._config.timeout_s) as pool:
            return pool.judge(questions)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.close()

    def _questions(self, found: Answers, prompt: Prompt) -> tuple[Question, ...]:
        """The questions on the first and the last answer: one if they are the same, none without a reference."""
        reference = prompt.metadata if self.grader == "reasoning_gym" else prompt.answer
        if reference is None:
            return ()
        metadata = prompt.metadata if self.grader == "choice" else ""
        last = Question(self.grader, found.last, reference, metadata)
        return (last,) if found.first == found.last else (last._replace(answer=found.first), last)

    def _refuse_foreign_prompts(self, traces: Sequence[Trace], prompts: Mapping[str, Prompt]) -> None:
        if self.grader != "reasoning_gym":
            return
        for prompt_id in dict.fromkeys(trace.prompt_id for trace in traces):
            if not has_scorer(prompts[prompt_id].metadata):
                raise UserError(
                    f"verify.grader is reasoning_gym, but prompt {prompt_id!r} comes from {prompts[prompt_id].source!r}; "
                    f"use verify.grader: math or exact"
                )


def without_question(trace: Trace, found: Answers | None) -> Judgement:
    """Return why a trace cannot be judged: there is no reference, or no final answer."""
    if found is not None:
        return NO_REFERENCE
    if trace.finish_reason == "error":
        return Judgement("unverifiable", "error")
    return Judgement("unverifiable", "truncated" if trace.finish_reason == "length" else "no_answer")


def verification(trace: Trace, found: Answers | None, first: Judgement, last: Judgement) -> Verification:
    """Return the row of a trace whose first and last answers were judged so."""
    return Verification(
        trace.trace_id,
        trace.prompt_id,
        last.verdict,
        last.reason,
        _stored(found.first) if found is not None else None,
        _stored(found.last) if found is not None else None,
        first_verdict=first.verdict,
        first_reason=first.reason,
        position=trace.position,
    )


def _stored(answer: str) -> str:
    return answer if len(answer) <= _STORED_CHARS else answer[: _STORED_CHARS - 1] + "…"
