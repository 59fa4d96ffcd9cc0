"""Random schedules of faults: a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

NUM_PROMPTS = 20
SAMPLES = 2
TEACHERS = ("batch", "single")
# More kills of replicas than this in one driver's life could hit one innocent task, alone in its replica, twice: it would be quarantined,
# as nobody could tell it from a poisoned one.
MOST_KILLS = 3


@dataclass(frozen=True)
class Event:
    """`kind` happens `after_s` seconds after the one before (the first: after the first replica of this driver is up)."""

    kind: str  # "actor", "node", "driver", "sigterm"
    after_s: float


@dataclass(frozen=True)
class Schedule:
    """Who works (both teachers share a pool), and what goes wrong: poisoned positions by teacher, slow traces, and for each driver, one
    after another, what happens to it.
    """

    seed: int
    teachers: tuple[str, ...]
    poison: dict[str, dict[int, str]]
    slow: tuple[tuple[str, int], ...]
    drivers: tuple[tuple[Event, ...], ...]


def schedule_of(seed: int) -> Schedule:
    """Return the schedule of a seed. About one in nine loses a node, one in three has a poisoned prompt."""
    rng = random.Random(seed)
    teachers = rng.choice((TEACHERS, TEACHERS[:1], TEACHERS[1:]))
    positions = NUM_PROMPTS * SAMPLES
    poison: dict[str, dict[int, str]] = {teacher: {} for teacher in teachers}
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2))):
        teacher = rng.choice(teachers)
        poison[teacher][rng.randrange(positions)] = rng.choice(("kill", "exit", "raise"))
    if "single" in teachers and rng.random() < 0.04:
        poison["single"][rng.randrange(positions)] = "hang"
    slow = tuple((rng.choice(teachers), rng.randrange(positions)) for _ in range(rng.choice((0, 1, 2))))
    drivers = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        kinds = rng.choices(("actor", "node", "driver", "sigterm"), weights=(60, 7, 25, 8), k=rng.choice((1, 1, 2, 3)))
        for place, kind in enumerate(kinds):
            if kind in ("driver", "sigterm"):  # what comes later would not find it
                kinds = kinds[: place + 1]
                break
        drivers.append(tuple(Event(kind, rng.uniform(0.0, 0.5)) for kind in kinds))
    return Schedule(seed, teachers, poison, slow, tuple(drivers))
