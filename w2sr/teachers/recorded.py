"""Traces that exist already, as a teacher: each prompt gets the rows that were recorded for it, in the order of the file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sr.artifacts import digest_of, file_digest
from w2sr.errors import UserError
from w2sr.prompts.files import read_rows
from w2sr.prompts.hub import read_hub_rows
from w2sr.prompts.rows import Row
from w2sr.records import FinishReason, Prompt
from w2sr.tables import part_files
from w2sr.teachers.engine import Completion, Engine, GeneratorSpec, Request
from w2sr.teachers.recorded_config import RecordedEngineConfig
from w2sr.teachers.requests import Arc, RequestPlan
from w2sr.teachers.worker import EngineWorker

_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "error")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Matching:
    """How recorded rows and prompts meet: `rows` = `used` + `surplus` (beyond samples_per_prompt) + `unmatched` (no such prompt).

    `prompts` = `prompts_with` + `prompts_without` a recorded trace. Prompts with the same question (white space aside) share their rows.
    """

    rows: int
    used: int
    surplus: int
    unmatched: int
    prompts: int
    prompts_with: int
    prompts_without: int

    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"{self.used:,} of {self.rows:,} recorded rows are traces of this teacher's prompts, {self.unmatched:,} match none of them, "
            f"{self.surplus:,} are beyond samples_per_prompt; {self.prompts_without:,} of {self.prompts:,} prompts have no recorded trace"
        )


class RecordedTraces:
    """The rows of a source, found by what `match` names. All of them are held in memory."""

    def __init__(self, config: RecordedEngineConfig, rows: Iterable[Row]) -> None:
        """Read `rows`. Raises UserError that names the row for a missing column or a value that cannot be what it stands for."""
        self.config = config
        self.num_rows = 0
        self._found: dict[str, list[Completion]] = {}
        for row in rows:
            self.num_rows += 1
            value = _column(row, config.match, getattr(config.fields, config.match))
            key = _key(config, "" if value is None else str(value))
            self._found.setdefault(key, []).append(_completion(config, row))
        self._found.pop("", None)  # a row without question or id matches nothing

    @classmethod
    def read(cls, config: RecordedEngineConfig) -> RecordedTraces:
        """Read what `config.path` names. Raises UserError for whatever is wrong with it."""
        return cls(config, _rows(config))

    def of(self, prompt_id: str, question: str) -> list[Completion]:
        """Return the traces recorded for a prompt, in their order."""
        value = question if self.config.match == "question" else prompt_id
        return self._found.get(_normal(value), [])

    def matching(self, prompts: Sequence[Prompt], samples: int) -> Matching:
        """Count how the rows and `prompts` meet when `samples` of a prompt are wanted. Raises UserError when they do not meet at all."""
        met = {_normal(prompt.question if self.config.match == "question" else prompt.prompt_id) for prompt in prompts}
        counts = [len(self._found[key]) for key in met if key in self._found]
        used = sum(min(samples, count) for count in counts)
        if not used:
            raise UserError(self._nothing_meets(prompts))
        found = sum(counts)
        with_traces = sum(bool(self.of(prompt.prompt_id, prompt.question)) for prompt in prompts)
        return Matching(
            rows=self.num_rows,
            used=used,
            surplus=found - used,
            unmatched=self.num_rows - found,
            prompts=len(prompts),
            prompts_with=with_traces,
            prompts_without=len(prompts) - with_traces,
        )

    def _nothing_meets(self, prompts: Sequence[Prompt]) -> str:
        match = self.config.match
        there = next(iter(self._found), "")
        wanted = (prompts[0].question if match == "question" else prompts[0].prompt_id) if prompts else ""
        return (
            f"none of the {self.num_rows:,} rows of {self.config.path} has the {match} of one of the {len(prompts):,} training prompts. "
            f"One of the rows has {_short(there)}, the first prompt {_short(wanted)}. Check engine.match, engine.fields and "
            "engine.question_format, and whether prompts.source is what was asked then"
        )


class RecordedPlan(RequestPlan):
    """The requests for which there is a recorded trace, among those that RequestPlan would make."""

    def __init__(
        self, generator: str, prompts: Sequence[Prompt], samples: int, run_seed: int, arc: Arc | None, traces: RecordedTraces
    ) -> None:
        """Raises UserError when no row belongs to a prompt on the arc; else says in the log how rows and prompts meet."""
        super().__init__(generator, prompts, samples, run_seed, arc)
        matching = traces.matching([prompts[index] for index in self.members], samples)
        _log.info("teacher %s: %s", generator, matching.sentence())
        counts = ((index, len(traces.of(prompts[index].prompt_id, prompts[index].question))) for index in self.members)
        self._counts = {index: min(samples, count) for index, count in counts if count}
        self.members = list(self._counts)

    @property
    def num_requests(self) -> int:
        """The requests that have a trace."""
        return sum(self._counts.values())

    def positions(self) -> Iterator[int]:
        """Yield the positions that have a trace, in order."""
        for index, count in self._counts.items():
            yield from range(index * self.samples, index * self.samples + count)


class RecordedEngine:
    """Answers from recorded traces. `model` is their origin, or the name of what they were read from."""

    name = "recorded"
    version = ""
    template_hash = ""

    def __init__(self, config: RecordedEngineConfig, traces: RecordedTraces) -> None:
        self.model = config.origin or Path(config.path).name
        self._traces = traces

    async def complete(self, requests: list[Request]) -> list[Completion]:
        """Return the recorded completions; where there is none, an error that says so (RecordedPlan does not ask for them)."""
        return [self._complete(request) for request in requests]

    def serve(self, spec: GeneratorSpec) -> bool:
        """See Engine.serve: it costs nothing to start anew."""
        del spec
        return False

    def close(self) -> None:
        """Nothing is held open."""

    def _complete(self, request: Request) -> Completion:
        found = self._traces.of(request.prompt_id, request.question)
        if request.sample_index < len(found):
            return found[request.sample_index]
        return Completion("", "error", 0, 0, f"there are {len(found)} recorded traces of this prompt")


@dataclass(frozen=True)
class RecordedWorkerFactory:
    """Makes a worker that answers from the recorded traces of its spec."""

    def __call__(self) -> EngineWorker:
        async def make(spec: GeneratorSpec) -> Engine:
            assert isinstance(spec.engine, RecordedEngineConfig)
            return RecordedEngine(spec.engine, RecordedTraces.read(spec.engine))

        return EngineWorker(make)


def recorded_source(config: RecordedEngineConfig) -> tuple[str, str]:
    """Return (name, digest) of what the traces are read from; for a hub dataset the digest covers its id and revision, not its rows.

    Raises UserError for a path that is neither a file nor a folder nor like a hub id.
    """
    path = _place(config)
    if path is None:
        place = {"path": config.path, "name": config.name, "split": config.split, "revision": config.revision}
        return config.path, digest_of(place)
    if path.is_file():
        return str(path), file_digest(path)
    files = _parts(path) or sorted(file for file in path.rglob("*") if file.is_file())
    return str(path), digest_of({str(file.relative_to(path)): file_digest(file) for file in files})


def _place(config: RecordedEngineConfig) -> Path | None:
    """Return the file or folder that is meant; None for a hub id."""
    path = Path(config.path).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", config.path):
        return None
    raise UserError(
        f"recorded traces: {config.path} does not exist; give a .json, .jsonl or .parquet file, a folder of part-*.parquet, a "
        f"dataset's folder, or a hub id (owner/name). Relative paths start at {Path.cwd()}"
    )


def _rows(config: RecordedEngineConfig) -> Iterator[Row]:
    path = _place(config)
    if path is not None and path.is_file():
        yield from read_rows(path)
    elif path is not None and (parts := _parts(path)):
        for part in parts:
            yield from read_rows(part)
    else:
        unused = "question" if config.match == "prompt_id" else "prompt_id"
        columns = {column for field, column in vars(config.fields).items() if column is not None and field != unused}
        yield from read_hub_rows(config, config.split, columns, "the recorded teacher's engine")


def _parts(path: Path) -> list[Path]:
    return part_files(path) if path.is_dir() else []


def _normal(text: str) -> str:
    return " ".join(text.split())


def _key(config: RecordedEngineConfig, value: str) -> str:
    """Return what a row is found by: its question without what question_format puts around it, or its prompt id; white space made one."""
    if config.match == "prompt_id":
        return _normal(value)
    before, after = config.question_format.split("{question}", 1)
    return _normal(value.strip().removeprefix(before.strip()).removesuffix(after.strip()))


def _completion(config: RecordedEngineConfig, row: Row) -> Completion:
    fields = config.fields
    text = _text(row, "text", fields.text)
    answer = _text(row, "answer", fields.answer) if fields.answer is not None else ""
    reason = _finish_reason(row, fields.finish_reason) if fields.finish_reason is not None else "stop"
    num_tokens = _count(row, fields.num_tokens) if fields.num_tokens is not None else 0
    if reason == "error" or not text.strip():
        return Completion("", "error", 0, 0, "recorded as an error" if reason == "error" else "the recorded text is empty")
    return Completion(text + config.answer_format.replace("{answer}", answer) if answer else text, reason, 0, num_tokens)


def _column(row: Row, field: str, column: str) -> Any:
    if column not in row.values:
        raise UserError(
            f"{row.where}: no column {column!r}; columns there: {', '.join(sorted(row.values)) or 'none'}. "
            f"Say which column it is with engine.fields.{field}"
        )
    return row.values[column]


def _text(row: Row, field: str, column: str) -> str:
    """Return a column as text; null is empty, a number is the text of its value."""
    value = _column(row, field, column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{row.where}: column {column!r} ({field}) holds {type(value).__name__}, {_short(value)}; it must be text")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character; no tokenizer or Parquet file can hold it
        raise UserError(
            f"{row.where}: column {column!r} ({field}) holds half a character at position {error.start}; correct the text"
        ) from error
    return text


def _finish_reason(row: Row, column: str) -> FinishReason:
    value = _column(row, "finish_reason", column)
    for reason in _FINISH_REASONS:
        if value == reason:
            return reason
    raise UserError(f"{row.where}: column {column!r} (finish_reason) holds {_short(value)}; allowed: {', '.join(_FINISH_REASONS)}")


def _count(row: Row, column: str) -> int:
    value = _column(row, "num_tokens", column)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise UserError(
            f"{row.where}: column {column!r} (num_tokens) holds {_short(value)}; it must be a whole number below 2**31, 0 for unknown"
        )
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
