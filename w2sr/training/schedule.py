"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from w2sr.errors import UserError
from w2sr.training.config import TrainConfig


def learning_rate(train: TrainConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `num_steps`: linear warm-up, then the schedule.

    No step is wasted on a rate of 0: the warm-up starts one notch above it, and the floor (min_learning_rate_ratio times the peak) is what
    the step after the last one would get. wsd (warm-up, stable, decay) is that of arXiv 2404.06395, section 4.
    """
    num_warmup = warmup_steps(train, num_steps)
    if step < num_warmup:
        return train.learning_rate * (step + 1) / (num_warmup + 1)
    floor = train.min_learning_rate_ratio
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "wsd":
        num_decay = max(1, round(train.decay_ratio * num_steps))
        progress = max(0.0, (step - (num_steps - num_decay)) / num_decay)
        return train.learning_rate * _decayed(train.decay_shape, progress, floor)
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return train.learning_rate * _decayed(train.schedule, progress, floor)


def warmup_steps(train: TrainConfig, num_steps: int) -> int:
    """Return how many steps of `num_steps` the learning rate rises; the next one has the peak."""
    return train.warmup_steps if train.warmup_steps is not None else round(train.warmup_share * num_steps)


def check_schedule(train: TrainConfig, num_steps: int) -> None:
    """Raise UserError when the learning rate would never reach its peak in `num_steps` steps."""
    num_warmup = warmup_steps(train, num_steps)
    num_decay = round(train.decay_ratio * num_steps) if train.schedule == "wsd" else 0
    if train.warmup_steps is not None and num_warmup + num_decay >= num_steps:
        decay = f" and the decay {num_decay}" if num_decay else ""
        raise UserError(
            f"train.warmup_steps={num_warmup}{decay}, but the training has {num_steps} steps: the learning rate would never stay at its "
            "peak. Lower train.warmup_steps, or give train.warmup_ratio instead, a share of the steps"
        )


def _decayed(shape: str, progress: float, floor: float) -> float:
    """Return the share of the peak after `progress` (0 to 1) of the way down to `floor`."""
    if shape == "exponential":
        return float(floor**progress)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "sqrt": 1 - math.sqrt(progress)}[shape]
    return floor + (1 - floor) * left
