"""Pools of made-up rows for the tests of curation: no files, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from w2sr.analysis.lexicon import words
from w2sr.curation.arms import KEPT, NO_CANDIDATE, Arm
from w2sr.curation.config import CurateConfig
from w2sr.curation.contamination import EvalItem
from w2sr.curation.facts import Facts
from w2sr.curation.ledger import Ledger
from w2sr.curation.pool import COLUMNS, GoldSource, Prompts, Source
from w2sr.curation.rewrite import HESITATION, Rewriter
from w2sr.curation.scan import Decisions, Scanner
from w2sr.curation.waves import arms_of_pool
from w2sr.grading.extract import extract_answers
from w2sr.records import trace_id_of

REASONS = {"correct": "match", "incorrect": "mismatch", "unverifiable": "no_answer"}


class WordCounts:
    """Counts words, and one end token."""

    def prefixes(self, questions: Sequence[str]) -> npt.NDArray[np.int32]:
        return np.array([len(question.split()) for question in questions], np.int32)

    def supervised(self, texts: Sequence[str], ended: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return np.array([len(text.split()) for text in texts], np.int32) + ended.astype(np.int32)


@dataclass
class FakeSource:
    """Rows given as dictionaries, in batches of three so that every test crosses a border."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[pa.Table]:
        for start in range(0, len(self.rows), 3):
            yield pa.Table.from_pylist(self.rows[start : start + 3], schema=COLUMNS)


def row(
    prompt: int, sample: int, verdict: str, text: str = "", finish: str = "stop", teacher: str = "weak", reason: str = "", answer: str = "1"
) -> dict[str, Any]:
    """Return one judged trace."""
    trace_id = trace_id_of(f"p{prompt}", teacher, sample)
    return {
        "row_id": trace_id,
        "prompt_id": f"p{prompt}",
        "origin": teacher,
        "text": text or f"trace {trace_id}",
        "finish_reason": finish,
        "verdict": verdict,
        "reason": reason or REASONS[verdict],
        "answer": answer or None,
        "trace_id": trace_id,
    }


def pool_of(num_correct: int, num_incorrect: int, num_unverifiable: int = 0, teacher: str = "weak") -> list[dict[str, Any]]:
    """Return traces of five prompts in turn."""
    verdicts = ["correct"] * num_correct + ["incorrect"] * num_incorrect + ["unverifiable"] * num_unverifiable
    return [row(number % 5, number, verdict, teacher=teacher) for number, verdict in enumerate(verdicts)]


def prompts_of(count: int, with_traces: bool = True, questions: Sequence[str] = (), answers: Sequence[str] = ()) -> Prompts:
    """Return prompts p0, p1, ...: question "<n>?", answer "<n>", reference trace "gold <n>"."""
    numbers = range(count)
    return Prompts(
        pa.array([f"p{n}" for n in numbers], pa.string()),
        pa.array([questions[n] if n < len(questions) else f"{n}?" for n in numbers], pa.string()),
        pa.array([answers[n] if n < len(answers) else str(n) for n in numbers], pa.string()),
        pa.array([f"gold {n}" if with_traces else None for n in numbers], pa.string()),
    )


@dataclass
class Made:
    """The arms of a pool, and their rows by name."""

    arms: dict[str, Arm]
    facts: Facts
    ids: list[str]
    ledger: Ledger

    def kept(self, name: str) -> list[str]:
        """Row ids of an arm, in the arm's order."""
        return [self.ids[number] for number in self.arms[name].rows]

    def rejected(self, name: str) -> dict[str, str]:
        """Row id -> reason, of an arm."""
        status = self.arms[name].status
        names = self.facts.codes.names
        return {self.ids[n]: names[code] for n, code in enumerate(status) if code not in (KEPT, NO_CANDIDATE)}

    def funnel(self, name: str) -> dict[str, int]:
        return self.arms[name].funnel(self.facts.codes.names)


def make(
    rows: list[dict[str, Any]],
    seed: int = 0,
    prompts: Prompts | None = None,
    items: Sequence[EvalItem] = (),
    decisions: Decisions = Decisions(),  # noqa: B008 - immutable
    **settings: Any,
) -> Made:
    """Run both halves of curation on `rows`; those of one origin become one source, in the order in which origins appear."""
    config = CurateConfig.model_validate({"match": "none", "human": "people.jsonl"} | settings)
    prompts = prompts if prompts is not None else prompts_of(5)
    origins = dict.fromkeys(r["origin"] for r in rows)
    sources: list[Source] = [FakeSource(origin, [r for r in rows if r["origin"] == origin]) for origin in origins]
    if any(arm.family == "gold" or "gold" in arm.mix for arm in config.arms):
        sources.append(GoldSource(prompts))
    ledger = Ledger(config.contamination, items)
    rewriters: dict[str, Rewriter] = {kind: Rewriter(kind, words(HESITATION), extract_answers) for kind in config.rewrites}
    scanner = Scanner(config, prompts, ledger, WordCounts(), seed, ["<eos>"], decisions, rewriters)
    facts = scanner.scan(sources)
    arms = arms_of_pool(facts, len(prompts), config)
    ids = [row_id for source in sources for table in source.batches() for row_id in table["row_id"].to_pylist()]
    return Made({arm.name: arm for arm in arms}, facts, ids, ledger)
