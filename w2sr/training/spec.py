"""What one training needs to know, as plain data that travels to the ranks (JSON for torchrun, pickled for Ray Train)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from w2sr.artifacts import digest_of
from w2sr.errors import UserError
from w2sr.schema import nearest
from w2sr.training.config import TrainConfig
from w2sr.training.data import rows_digest

Ended = Literal["all steps", "no gain on selection"]


@dataclass(frozen=True)
class TrainSpec:
    """One student. `output` gets checkpoints/, metrics.jsonl, TensorBoard events, model/ and result.json; `rows` is a rows file or
    a mixture of them (data.py).

    `model` is a folder with the weights to start from, `model_digest` its digest; `selection_rows` (optional) are never trained on.
    `stop_by` (optional, ISO 8601 with a zone): by then the state is to be saved.
    """

    name: str
    seed: int
    train: TrainConfig
    model: str
    model_digest: str
    rows: str
    output: str
    selection_rows: str | None = None
    stop_by: str | None = None

    @property
    def stop_at(self) -> datetime | None:
        """`stop_by` as a time with its zone."""
        return None if self.stop_by is None else datetime.fromisoformat(self.stop_by)

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return json.dumps({**dataclasses.asdict(self), "train": self.train.model_dump(mode="json")}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> TrainSpec:
        """Read what `to_json` wrote; `where` names the file in the UserError about what is wrong in it."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON ({error}); w2sr writes it as train/NAME/spec.json") from error
        if not isinstance(values, dict):
            raise UserError(f"{where} is no JSON object but {values!r}; w2sr writes it as train/NAME/spec.json")
        names = [field.name for field in dataclasses.fields(cls)]
        wrong = sorted((set(values) ^ set(names)) - {"selection_rows", "stop_by"})
        if wrong:
            raise UserError(f"{where}: key {wrong[0]!r} is unknown or missing: {nearest(wrong[0], names)}needed: {', '.join(names)}")
        try:
            train = TrainConfig.model_validate(values["train"])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, ("train", *first["loc"])))
            raise UserError(f"{where}: {key}: {first['msg'].removeprefix('Value error, ')} (given: {first['input']!r:.100})") from error
        spec = cls(**{**values, "train": train})
        spec._check_values(where)
        return spec

    def _check_values(self, where: str) -> None:
        """Raise UserError about a value that a hand has changed into what it cannot be."""
        if not isinstance(self.seed, int):
            raise UserError(f"{where}: seed is {self.seed!r}; give a whole number")
        paths = ("name", "model", "model_digest", "rows", "output", *(["selection_rows"] if self.selection_rows is not None else []))
        for key in paths:
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{where}: {key} is {getattr(self, key)!r}; give a text")
        try:
            zone = self.stop_at is None or self.stop_at.tzinfo
        except (TypeError, ValueError):
            zone = None
        if not zone:
            raise UserError(f"{where}: stop_by is {self.stop_by!r}; give a time with its zone, such as 2026-12-01T06:00:00+00:00, or null")

    def identity(self) -> str:
        """Return a digest of everything that decides the weights: a checkpoint is continued only under the same one."""
        data = {"train": self.train.identity(), "seed": self.seed, "model": self.model_digest, "rows": rows_digest(Path(self.rows))}
        if self.train.selection.decides and self.selection_rows is not None:
            data["selection_rows"] = rows_digest(Path(self.selection_rows))
        return digest_of(data)


@dataclass(frozen=True)
class TrainResult:
    """What a finished training did: optimizer steps, tokens seen (`supervised_tokens` of them in the loss), seconds over all attempts.

    `rank_seconds`: seconds times ranks. `sizes`: (first step, from 1, and number of ranks) of each stretch with one number of ranks.
    `exported_step`: after how many steps the exported weights were reached. `ended`: why there were no more steps.
    """

    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    rank_seconds: float
    sizes: tuple[tuple[int, int], ...]
    exported_step: int
    ended: Ended

    @classmethod
    def load(cls, output: Path) -> TrainResult | None:
        """Return the result in a student's folder, or None while the training is not finished."""
        path = output / RESULT
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "sizes": tuple((first, ranks) for first, ranks in values["sizes"])})

    def to_json(self) -> str:
        """Return the result as JSON text."""
        values: dict[str, Any] = dataclasses.asdict(self)
        return json.dumps(values, indent=1) + "\n"


RESULT = "result.json"
