"""Students of several sizes beside each other: what a larger student makes of its teachers' traces."""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.artifacts import Manifest
from w2sr.run import Run


@dataclass(frozen=True)
class Size:
    """A run's student: its parameters, and the tokens and device-seconds of all its trainings."""

    parameters: int
    tokens: float
    device_seconds: float


def size_of(run: Run) -> Size:
    """Return the size of a run's students, which is the same for all."""
    manifests = [Manifest.load(run.stage("train", name)) for name, _, _ in run.student_names()]
    tokens, seconds = (sum(manifest.usage[key] for manifest in manifests) for key in ("tokens", "device_seconds"))
    return Size(manifests[0].counts["parameters"], tokens, seconds)
