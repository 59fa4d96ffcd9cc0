"""The verdicts on one teacher's traces, as they are made: a store beside the traces that may begin before the traces are complete.

Verdicts made early are worth something only for exactly these traces and this configuration. So a folder that has verdicts, but was not
begun as a stage yet, has `early.json`, which says what they belong to; what belongs to something else is removed unread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import STARTED, digest_of
from w2sr.grading.choice import extract_choices
from w2sr.grading.config import VerifyConfig
from w2sr.grading.extract import Answers, extract_answers
from w2sr.records import Prompt, Trace, Verification
from w2sr.tables import write_text
from w2sr.traces.follower import Follower
from w2sr.traces.recovery import remove_shards
from w2sr.traces.store import TraceStore

EARLY = "early.json"
BATCH_ROWS = 2048  # enough for all grading processes to get some of the difficult answers

Grade = Callable[[Sequence[Trace]], Sequence[Verification]]


@dataclass(frozen=True)
class Subject:
    """A teacher whose traces are judged. `traces` and `verdicts` are folders; positions of traces are less than `limit`."""

    name: str
    traces: Path
    verdicts: Path
    limit: int

    @property
    def has_begun(self) -> bool:
        """Whether the verify stage has begun here, and so the traces it was begun with were complete."""
        return (self.verdicts / STARTED).exists()

    def origin(self, config: VerifyConfig, prompts_digest: str) -> str:
        """Return the digest of what decides the verdicts. The generate stage's first attempt stands for traces that are not complete."""
        started = json.loads((self.traces / STARTED).read_text(encoding="utf-8"))
        return digest_of([config.identity(), prompts_digest, started["config"], started["inputs"], started["attempts"][0]["began"]])

    def open_early(self, origin: str, flush_interval_s: float) -> TraceStore[Verification]:
        """Open the store before the stage has begun. Verdicts of another origin are removed."""
        assert not self.has_begun, "these verdicts belong to a stage"
        self.discard_unless(origin)
        self.verdicts.mkdir(parents=True, exist_ok=True)
        write_text(self.verdicts / EARLY, json.dumps({"origin": origin}) + "\n")
        return self.open(flush_interval_s)

    def discard_unless(self, origin: str) -> None:
        """Remove early verdicts that belong to something else. Nothing happens in a folder that was begun as a stage."""
        early = self.verdicts / EARLY
        if self.has_begun or not self.verdicts.is_dir():
            return
        if not early.exists() or json.loads(early.read_text(encoding="utf-8")) != {"origin": origin}:
            remove_shards(self.verdicts)

    def open(self, flush_interval_s: float = 20.0) -> TraceStore[Verification]:
        """Open the store. Raises UserError when another process writes it."""
        return TraceStore.open(self.verdicts, Verification, self.limit, flush_interval_s=flush_interval_s)

    def unjudged(self, store: TraceStore[Verification]) -> Follower[Trace]:
        """Return a reader of the committed traces that have no verdict yet."""
        return Follower(self.traces, Trace, store.positions.copy())


def batches(follower: Follower[Trace]) -> Iterator[list[Trace]]:
    """Yield what is committed and not yet seen, a few thousand traces at a time."""
    waiting: list[Trace] = []
    for rows in follower.poll():
        waiting += rows
        while len(waiting) >= BATCH_ROWS:
            yield waiting[:BATCH_ROWS]
            del waiting[:BATCH_ROWS]
    if waiting:
        yield waiting


class Sieve:
    """Holds back the traces whose verdict needs more than a reference: a vote, or a judge."""

    def __init__(self, config: VerifyConfig, prompts: Mapping[str, Prompt]) -> None:
        self._extract = extract_choices if config.grader == "choice" else extract_answers
        wanted = config.without_reference != "unverifiable" and config.grader != "reasoning_gym"
        self._without = {prompt_id for prompt_id, prompt in prompts.items() if wanted and prompt.answer is None}

    def __bool__(self) -> bool:
        return bool(self._without)

    def held_back(self, trace: Trace) -> Answers | None:
        """Return the final answers of a trace that has to wait; None for one that can be judged at once."""
        return self._extract(trace.text) if trace.prompt_id in self._without else None

    def pass_through(self, traces: Sequence[Trace]) -> list[Trace]:
        """Return the traces that can be judged at once."""
        return [trace for trace in traces if self.held_back(trace) is None] if self._without else list(traces)
