"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from w2sr.training.config import TrainConfig


def learning_rate(train: TrainConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `num_steps`: linear warm-up, then the schedule.

    No step is wasted on a rate of 0: the warm-up starts one notch above it, and the floor (min_learning_rate_ratio times the peak) is what
    the step after the last one would get.
    """
    num_warmup = round(train.warmup_ratio * num_steps)
    if step < num_warmup:
        return train.learning_rate * (step + 1) / (num_warmup + 1)
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[train.schedule]
    floor = train.min_learning_rate_ratio
    return train.learning_rate * (floor + (1 - floor) * shape)
