"""Judge traces: one Verification for each trace, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from w2sr.errors import UserError
from w2sr.grading.config import VerifyConfig
from w2sr.grading.extract import Answers, extract_answers
from w2sr.grading.graders import NO_REFERENCE, Judgement, Question, has_scorer, judge_cheaply
from w2sr.grading.workers import GradingPool
from w2sr.records import Prompt, Trace, Verification

_STORED_CHARS = 500  # of an answer in a Verification; a longer one ends in an ellipsis there (it is judged whole)


class Grader:
    """Judges traces. Grading processes are started when the first difficult answer comes and kept until the end."""

    def __init__(self, config: VerifyConfig) -> None:
        self._grader = config.grader
        self._pool = GradingPool(config.grader, config.workers, config.timeout_s)

    def grade(self, traces: Sequence[Trace], prompts: Mapping[str, Prompt]) -> list[Verification]:
        """Return the verdict on each of `traces`, in their order; `prompts` maps prompt_id to the prompt each of them answers.

        The last final answer decides (see extract.py). Without one a trace is unverifiable: "error" (the engine failed), "truncated" (the
        token limit ended it) or "no_answer". Other reasons: "match"; "mismatch"; and, all unverifiable, "no_reference", "unparsable",
        "unparsable_reference", "timeout", "memory", "crashed". Raises UserError when the grader is reasoning_gym and a prompt is not from
        there.
        """
        self._refuse_foreign_prompts(traces, prompts)
        answers = [extract_answers(trace.text) for trace in traces]
        questions = [self._question(found, prompts[trace.prompt_id]) for trace, found in zip(traces, answers, strict=True)]
        judged = self._judge(dict.fromkeys(question for question in questions if question is not None))
        verifications = []
        for trace, found, question in zip(traces, answers, questions, strict=True):
            judgement = judged[question] if question is not None else _without_question(trace, found)
            verifications.append(_verification(trace, found, judgement))
        return verifications

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.close()

    def _question(self, found: Answers | None, prompt: Prompt) -> Question | None:
        reference = prompt.metadata if self._grader == "reasoning_gym" else prompt.answer
        return Question(self._grader, found.last, reference) if found is not None and reference is not None else None

    def _judge(self, questions: Iterable[Question]) -> dict[Question, Judgement]:
        judged: dict[Question, Judgement] = {}
        difficult = []
        for question in questions:
            judgement = judge_cheaply(question)
            if judgement is None:
                difficult.append(question)
            else:
                judged[question] = judgement
        if difficult:
            judged.update(zip(difficult, self._pool.judge(difficult), strict=True))
        return judged

    def _refuse_foreign_prompts(self, traces: Sequence[Trace], prompts: Mapping[str, Prompt]) -> None:
        if self._grader != "reasoning_gym":
            return
        for prompt_id in dict.fromkeys(trace.prompt_id for trace in traces):
            if not has_scorer(prompts[prompt_id].metadata):
                raise UserError(
                    f"verify.grader is reasoning_gym, but prompt {prompt_id!r} comes from {prompts[prompt_id].source!r}; "
                    f"use verify.grader: math or exact"
                )


def _without_question(trace: Trace, found: Answers | None) -> Judgement:
    if found is not None:
        return NO_REFERENCE
    if trace.finish_reason == "error":
        return Judgement("unverifiable", "error")
    return Judgement("unverifiable", "truncated" if trace.finish_reason == "length" else "no_answer")


def _verification(trace: Trace, found: Answers | None, judgement: Judgement) -> Verification:
    first, last = (_stored(found.first), _stored(found.last)) if found is not None else (None, None)
    return Verification(trace.trace_id, trace.prompt_id, judgement.verdict, judgement.reason, first, last)


def _stored(answer: str) -> str:
    return answer if len(answer) <= _STORED_CHARS else answer[: _STORED_CHARS - 1] + "…"
