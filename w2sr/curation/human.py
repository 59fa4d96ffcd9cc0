"""People's decisions about traces: a JSONL file, one decision a line (docs/curation.md).

    {"decision": "edit",   "trace_id": "...",  "text": "...", "editor": "ada", "edited_at": "2026-11-22T10:00:00Z", "note": "..."}
    {"decision": "write",  "prompt_id": "...", "text": "...", "editor": "ada", "edited_at": "...", "verdict": "correct"}
    {"decision": "reject", "trace_id": "...",  "editor": "ada", "edited_at": "...", "note": "guesses"}
    {"decision": "accept", "trace_id": "...",  "editor": "ada", "edited_at": "..."}

An edited text takes its trace's place in every arm and remembers it (`edited_from`); a rejected trace enters no arm; an accepted one counts
as human, too. A trace that is decided on twice is refused: which one holds is for people to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError, model_validator

from w2sr.curation.pool import BATCH_ROWS, COLUMNS, HUMAN
from w2sr.curation.scan import Decisions
from w2sr.errors import UserError
from w2sr.prompts.files import read_rows
from w2sr.records import Trace, Verdict, Verification
from w2sr.schema import StrictModel


class Decision(StrictModel):
    """One line of the file."""

    decision: Literal["edit", "write", "reject", "accept"] = Field(description="What the person decided.")
    trace_id: str | None = Field(None, min_length=1, description="The trace it is about; not for write.")
    prompt_id: str | None = Field(None, min_length=1, description="The prompt a new text answers; edit: may be given, must fit.")
    text: str | None = Field(None, description="The whole new text; edit and write.")
    verdict: Verdict | None = Field(None, description="The person's verdict on the text; None: the run's grader judges it.")
    editor: str = Field(min_length=1, description="Who decided.")
    edited_at: datetime = Field(description="When, as ISO 8601 with a time zone.")
    note: str = Field("", description="Why.")

    @model_validator(mode="after")
    def _consistent(self) -> Decision:
        needs_text, needs_trace = self.decision in ("edit", "write"), self.decision != "write"
        if needs_text and not (self.text or "").strip():
            raise ValueError(f"{self.decision} needs a text that is not empty")
        if not needs_text and self.text is not None:
            raise ValueError(f"{self.decision} takes no text; to change it use edit")
        if needs_trace and self.trace_id is None:
            raise ValueError(f"{self.decision} needs the trace_id it is about")
        if not needs_trace and (self.trace_id is not None or self.prompt_id is None):
            raise ValueError("write needs a prompt_id and no trace_id; to change a trace use edit")
        if self.edited_at.tzinfo is None:
            raise ValueError(f"edited_at {self.edited_at.isoformat()} has no time zone; write for example 2026-11-22T10:00:00Z")
        return self

    def human_id(self) -> str:
        """Return the id of the text in arms: a function of what it answers, who wrote it and what it says."""
        content = "\x1f".join([self.trace_id or "", self.prompt_id or "", self.editor, self.text or ""])
        return f"human-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def read_decisions(path: Path) -> list[Decision]:
    """Read the file. Raises UserError that names the line for what is missing, unknown or contradictory."""
    if path.suffix != ".jsonl":
        raise UserError(f"curate.human: {path} is no .jsonl file; give one decision a line (docs/curation.md)")
    decisions: list[Decision] = []
    first: dict[str, str] = {}
    for row in read_rows(path):
        try:
            decision = Decision.model_validate(row.values)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise UserError(f"{row.where}: {field + ': ' if field else ''}{problem['msg'].removeprefix('Value error, ')}") from error
        key = decision.trace_id or decision.human_id()
        if key in first:
            raise UserError(f"{row.where}: {key} is decided on already in {first[key]}; keep one of the two lines")
        first[key] = row.where
        decisions.append(decision)
    return decisions


def decisions_of(decisions: Sequence[Decision]) -> Decisions:
    """Return what the scan needs to know of teachers' traces."""
    by_kind = {kind: frozenset(d.trace_id for d in decisions if d.decision == kind and d.trace_id) for kind in ("reject", "edit", "accept")}
    return Decisions(by_kind["reject"], by_kind["edit"], by_kind["accept"])


def texts_of(decisions: Sequence[Decision], prompt_of: dict[str, str]) -> list[tuple[Decision, str]]:
    """Return every decision with a text and the prompt it answers; `prompt_of` maps the traces that decisions are about to their prompts.

    Raises UserError for a trace that the run does not have, or whose prompt is another one than the decision says.
    """
    found = []
    for decision in decisions:
        prompt_id = decision.prompt_id
        if decision.trace_id is not None:
            if decision.trace_id not in prompt_of:
                raise UserError(
                    f"curate.human: {decision.editor} decided on trace {decision.trace_id!r}, which no teacher of this run wrote; "
                    "decisions belong to the run whose traces were shown"
                )
            if prompt_id not in (None, prompt_of[decision.trace_id]):
                raise UserError(
                    f"curate.human: trace {decision.trace_id!r} answers prompt {prompt_of[decision.trace_id]!r}, not {prompt_id!r}; "
                    "correct the prompt_id or leave it out"
                )
            prompt_id = prompt_of[decision.trace_id]
        if decision.text is not None:
            assert prompt_id is not None
            found.append((decision, prompt_id))
    return found


def as_trace(decision: Decision, prompt_id: str) -> Trace:
    """Return a person's text as a trace, for the grader."""
    assert decision.text is not None
    return Trace(decision.human_id(), prompt_id, HUMAN, 0, decision.text, "stop", 0, 0, 0, "", "", HUMAN, None)


@dataclass(frozen=True)
class HumanSource:
    """People's texts with their verdicts, in the order of their ids."""

    rows: Sequence[tuple[Decision, Verification]]
    name: str = HUMAN

    @property
    def num_rows(self) -> int:
        """Texts."""
        return len(self.rows)

    def batches(self) -> Iterator[pa.Table]:
        """Yield them."""
        ordered = sorted(self.rows, key=lambda row: row[1].trace_id)
        for start in range(0, len(ordered), BATCH_ROWS):
            rows = [self._row(decision, judged) for decision, judged in ordered[start : start + BATCH_ROWS]]
            yield pa.Table.from_pylist(rows, schema=COLUMNS)

    def _row(self, decision: Decision, judged: Verification) -> dict[str, Any]:
        return {
            "row_id": judged.trace_id,
            "prompt_id": judged.prompt_id,
            "origin": HUMAN,
            "text": decision.text,
            "finish_reason": "stop",
            "verdict": judged.verdict,
            "reason": judged.reason,
            "answer": judged.last_answer,
            "edited_from": decision.trace_id,
        }
