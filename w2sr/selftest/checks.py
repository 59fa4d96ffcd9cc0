"""What a selftest says: one line for each property, with the difference that was seen and the one that is allowed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from w2sr.training.watch import METRICS

if TYPE_CHECKING:
    import torch

Weights = dict[str, "torch.Tensor"]

# Relative differences of the same sums in another order. fp32 rounds to 1e-7; a wrong scale or a leak between rows is off by 1e-3 or more.
LOSS, GRADIENT, NORM = 1e-5, 1e-3, 1e-4
# 16 bits round each activation to 1 in 256.
LOSS_16, GRADIENT_16, NORM_16 = 5e-3, 0.1, 5e-2
# Adam turns a gradient that is nothing but rounding into a whole step, so some elements of an update differ; most do not.
UPDATE, UPDATE_16 = 0.01, 0.3


@dataclass(frozen=True)
class Check:
    """One property. `difference` is compared with `allowed`, both relative unless `what` says else; `note`: what to look at."""

    name: str
    what: str
    difference: float
    allowed: float
    note: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.skipped or self.difference <= self.allowed


def failed(name: str, why: str) -> Check:
    """Return a check that could not be made, which counts as failed."""
    return Check(name, "could not be done", math.inf, 0.0, why)


def skipped(name: str, why: str) -> Check:
    """Return a check that has no meaning here."""
    return Check(name, "not done", 0.0, 0.0, why, skipped=True)


def relative(one: float, other: float) -> float:
    """Return how far two numbers are from each other, over the larger; NaN when one is not finite."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.nan
    return abs(one - other) / max(abs(one), abs(other), 1e-30)


def same_training(name: str, one: Path, other: Path, start: Weights, half: bool, note: str = "") -> list[Check]:
    """Compare two trainings that should differ in the order of their sums alone: every loss, every gradient's norm, and the update."""
    logs = [steps_of(folder) for folder in (one, other)]
    if len(logs[0]) != len(logs[1]) or not logs[0]:
        return [failed(name, f"{len(logs[0])} and {len(logs[1])} steps were logged")]
    found = []
    for key, what, allowed in (("loss", "loss", LOSS_16 if half else LOSS), ("grad_norm", "gradient norm", NORM_16 if half else NORM)):
        differences = [relative(a[key], b[key]) for a, b in zip(*logs)]
        # Later steps start from weights that differ by rounding already.
        found.append(Check(name, f"{what} of the first step", differences[0], allowed, note))
        found.append(Check(name, f"{what} of all {len(differences)} steps", _worst(differences), 10 * allowed, note))
    update = update_difference(start, weights_of(one), weights_of(other))
    return [*found, Check(name, "update of the weights", update, UPDATE_16 if half else UPDATE, note)]


def same_bits(name: str, one: Path, other: Path, note: str = "") -> Check:
    """Compare the exported weights of two trainings that should be the same to the last bit; the difference is a count of elements."""
    first, second = weights_of(one), weights_of(other)
    if first.keys() != second.keys():
        return failed(name, "the exported models have other weights")
    different = sum(int((first[key] != second[key]).sum()) for key in first)
    return Check(name, "elements of the weights that differ", float(different), 0.0, note)


def update_difference(start: Weights, one: Weights, other: Weights) -> float:
    """Return the norm of the difference of two updates over that of the first."""
    names = [name for name in one if name in start]
    moved = sum(float((one[name].double() - start[name].double()).square().sum()) for name in names)
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in names)
    return math.sqrt(apart / moved) if moved else math.nan


def weights_of(folder: Path) -> Weights:
    """Return the weights that a training exported."""
    return tensors_in(folder / "model")


def tensors_in(folder: Path) -> Weights:
    """Return the tensors of a model folder's safetensors files."""
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def steps_of(folder: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl that are optimizer steps."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def _worst(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)
