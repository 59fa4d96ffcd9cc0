"""The base of every configuration model: unknown keys are refused with the nearest valid one, values are immutable."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

# A field with this extra says how a result is computed (replicas, processors, paths), not which result: it stays out of fingerprints.
PLACEMENT: dict[str, Any] = {"placement": True}


def nearest(word: str, allowed: list[str]) -> str:
    """Return "did you mean 'x'? " for the closest allowed word, or an empty string."""
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


class StrictModel(BaseModel):
    """A pydantic model that refuses unknown keys by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            allowed = list(cls.model_fields)
            for key in values:
                if key not in allowed:
                    below = [place for place in cls._keys_below() if place.endswith(f".{key}")]
                    meant = f"did you mean {below[0]!r}? " if below else nearest(str(key), allowed)
                    raise ValueError(f"unknown key {key!r}: {meant}allowed here: {', '.join(allowed)}")
        return values

    @classmethod
    def _keys_below(cls) -> list[str]:
        """Return "loss.gce_q" and so on: the keys of the models that are this one's values, and of theirs."""
        found = []
        for name, field in cls.model_fields.items():
            for model in (field.annotation, *get_args(field.annotation)):
                if isinstance(model, type) and issubclass(model, StrictModel):
                    found += [f"{name}.{key}" for key in (*model.model_fields, *model._keys_below())]
        return found

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, as plain data: what a stage's fingerprint is made of."""
        return {name: _identity(getattr(self, name)) for name, field in type(self).model_fields.items() if not _is_placement(field)}


def _is_placement(field: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("placement"))


def _identity(value: Any) -> Any:
    if isinstance(value, StrictModel):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    return value
