"""Waves: the training prompts, in their order, in parts that are curated each by itself and trained on one after another.

Traces are asked for in the order of the prompts. So an early wave is whole while later ones are still being written, and what is made of
it does not depend on them.
"""

from __future__ import annotations

from pathlib import Path

from w2sr.errors import UserError
from w2sr.records import Prompt
from w2sr.tables import iter_table


def wave_bounds(num_prompts: int, waves: int) -> list[int]:
    """Return where each of `waves` begins among `num_prompts` prompts, and the end of the last; [waves + 1].

    Raises UserError when there are fewer prompts than waves.
    """
    if num_prompts < waves:
        raise UserError(f"curate.waves={waves}, but there are {num_prompts} training prompts; give at most as many waves as prompts")
    return [sum(share_of(num_prompts, wave, waves) for wave in range(end)) for end in range(waves + 1)]


def share_of(number: int, wave: int, waves: int) -> int:
    """Return how many of `number` belong to `wave` (from 0) of `waves`.

    The shares of all waves add up to `number`, and none is less than that of a smaller number.
    """
    return number // waves + (wave < number % waves)


def waves_of_prompts(prompts: Path, waves: int) -> dict[str, int]:
    """Return the wave of each prompt id in the file `prompts` (prompts/train.parquet)."""
    ids = [prompt.prompt_id for prompt in iter_table(prompts, Prompt)]
    bounds = wave_bounds(len(ids), waves)
    return {prompt_id: wave for wave in range(waves) for prompt_id in ids[bounds[wave] : bounds[wave + 1]]}
