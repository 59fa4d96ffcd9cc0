"""One engine in a process of its own: what the actor pool runs."""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.teachers.engine import Completion


@dataclass(frozen=True)
class UnitResult:
    """A unit's completions, in the order of its requests, and what they cost."""

    completions: list[Completion]
    engine: str
    template_hash: str
    seconds: float
