"""What one teacher's traces are like, counted one by one in fixed memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from w2sr.diagnosis.distinct import DistinctSample
from w2sr.diagnosis.lengths import Lengths
from w2sr.diagnosis.rates import Rate
from w2sr.grading.choice import extract_choices
from w2sr.grading.extract import Answers, extract_answers
from w2sr.records import Trace
from w2sr.textual.loops import is_loop
from w2sr.textual.scripts import stray_scripts

NUM_EXAMPLES = 3
_MAX_KINDS = 20
_NUMBER = re.compile(r"\d+")
Extract = Callable[[str], Answers | None]


@dataclass(frozen=True)
class TeacherDiagnosis:
    """The figures of one teacher.

    requests = traces + failed (`failures` by kind). Of the requests: `format_valid` (ended by itself and has a final answer) and `failed`.
    Of the traces: `truncated`, `no_answer`, `loop`, `stray_script` (`scripts` says which), `empty`, `duplicate_in_prompt` (the text of an
    earlier trace of the same prompt) and `duplicate_across_prompts` (of another prompt). A trace may count in several. Of the verdicts:
    `accuracy`, None when the teacher is not verified. `duplicates_exact` False: they are estimated (distinct.py). `examples`: up to three
    trace ids for each rate but accuracy and duplicates.
    """

    teacher: str
    requests: int
    traces: int
    rates: dict[str, Rate]
    failures: dict[str, int]
    scripts: dict[str, int]
    lengths: Lengths
    examples: dict[str, list[str]]
    duplicates_exact: bool = True
    complete: bool = True
    accuracy: Rate | None = None


def extractor(grader: str) -> Extract:
    """Return what finds the final answers for this `verify.grader`."""
    return extract_choices if grader == "choice" else extract_answers


@dataclass
class Tally:
    """Counts a teacher's traces as they come, in any order. `diagnosis()` may be asked at any time. `extract`: see extractor()."""

    teacher: str
    extract: Extract = extract_answers
    _counts: Counter[str] = field(default_factory=Counter)
    _failures: Counter[str] = field(default_factory=Counter)
    _scripts: Counter[str] = field(default_factory=Counter)
    _tokens: Counter[int] = field(default_factory=Counter)
    _words: Counter[int] = field(default_factory=Counter)
    _examples: dict[str, list[str]] = field(default_factory=dict)
    _texts: DistinctSample = field(default_factory=DistinctSample)
    _texts_of_prompts: DistinctSample = field(default_factory=DistinctSample)

    @property
    def requests(self) -> int:
        """Traces and failures added so far."""
        return self._counts["requests"]

    def add(self, trace: Trace, question: str) -> None:
        """Count a trace of a prompt that asks `question` (its scripts are not stray in the answer)."""
        self._counts["requests"] += 1
        if trace.finish_reason == "error":
            self._note("failed", trace)
            kind = _NUMBER.sub("N", trace.error or "no reason given")[:80]
            self._failures[kind if kind in self._failures or len(self._failures) < _MAX_KINDS else "other"] += 1
            self._note("not_format_valid", trace)
            return
        self._counts["traces"] += 1
        truncated, answered = trace.finish_reason == "length", self.extract(trace.text) is not None
        strays = stray_scripts(trace.text, question)
        self._scripts.update(strays.keys())
        found = {
            "truncated": truncated,
            "no_answer": not answered,
            "not_format_valid": truncated or not answered,
            "loop": is_loop(trace.text),
            "stray_script": bool(strays),
            "empty": not trace.text.strip(),
        }
        for name, holds in found.items():
            if holds:
                self._note(name, trace)
        self._texts.add(trace.text)
        self._texts_of_prompts.add(trace.prompt_id, trace.text)
        if trace.num_tokens > 0:
            self._tokens[trace.num_tokens] += 1
        self._words[len(trace.text.split())] += 1

    def diagnosis(self) -> TeacherDiagnosis:
        """Return the figures of what was added so far."""
        requests, traces = self._counts["requests"], self._counts["traces"]
        in_prompt = Rate(self._texts_of_prompts.sampled - self._texts_of_prompts.distinct, self._texts_of_prompts.sampled)
        return TeacherDiagnosis(
            teacher=self.teacher,
            requests=requests,
            traces=traces,
            rates={
                "format_valid": Rate(requests - self._counts["not_format_valid"], requests),
                "failed": Rate(self._counts["failed"], requests),
                **{name: Rate(self._counts[name], traces) for name in ("truncated", "no_answer", "loop", "stray_script", "empty")},
                "duplicate_in_prompt": in_prompt,
                "duplicate_across_prompts": self._across(in_prompt),
            },
            failures=dict(self._failures.most_common()),
            scripts=dict(self._scripts.most_common()),
            # A recorded trace, or an endpoint, may not say how many tokens it had.
            lengths=Lengths.of(self._tokens, "tokens") if self._tokens.total() == traces else Lengths.of(self._words, "words"),
            examples={name: list(ids) for name, ids in self._examples.items()},
            duplicates_exact=self._texts.is_exact and self._texts_of_prompts.is_exact,
        )

    def _across(self, in_prompt: Rate) -> Rate:
        """Return the traces that repeat a text of another prompt: all that repeat a text, without those that repeat it in their prompt."""
        sampled, distinct = self._texts.sampled, self._texts.distinct
        within = round(in_prompt.value * sampled)  # of two samples when the stream was long; the same numbers when it was not
        return Rate(max(0, sampled - distinct - within), sampled)

    def _note(self, name: str, trace: Trace) -> None:
        self._counts[name] += 1
        examples = self._examples.setdefault(name, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(trace.trace_id)
