"""Arms wave by wave: which rows of a wave enter an arm depends on the rows of that wave only, so later ones need not be there yet."""

from __future__ import annotations

import numpy as np

from w2sr.curation.arms import NO_CANDIDATE, Arm, ArmMaker
from w2sr.curation.config import CurateConfig
from w2sr.curation.facts import Facts
from w2sr.errors import UserError
from w2sr.prompts.waves import wave_bounds


def arms_of_pool(facts: Facts, num_prompts: int, config: CurateConfig) -> list[Arm]:
    """Return the arms of a whole pool: the rows of its waves one after another. Raises UserError as ArmMaker.make does."""
    bounds = wave_bounds(num_prompts, config.waves)
    wave_of_row = np.searchsorted(bounds, facts.prompt, side="right") - 1
    joined: dict[str, Arm] = {}
    for wave in range(config.waves):
        own = np.flatnonzero(wave_of_row == wave)
        for arm in arms_of_wave(facts.some(own), num_prompts, config, wave):
            nothing = Arm(arm.name, np.full(facts.num_rows, NO_CANDIDATE, np.int16), np.zeros(0, np.int64), arm.rewrite)
            whole = joined.setdefault(arm.name, nothing)
            whole.status[own] = arm.status
            whole.rows = np.concatenate([whole.rows, own[arm.rows]])
    return list(joined.values())


def arms_of_wave(facts: Facts, num_prompts: int, config: CurateConfig, wave: int) -> list[Arm]:
    """Return the arms of one wave (from 0), of which `facts` has all rows and no other. Raises UserError as ArmMaker.make does."""
    try:
        return ArmMaker(facts, num_prompts, config, wave).make()
    except UserError as error:
        if config.waves == 1:
            raise
        raise UserError(f"wave {wave + 1} of {config.waves}: {error}; or set curate.waves to fewer") from error
