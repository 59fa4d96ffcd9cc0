"""How tokens are drawn: temperature, nucleus, and noise that belongs to the request.

Every row of a batch has a noise stream of its own, a function of its request's seed. The draw inverts the cumulative distribution in
vocabulary order, so that a rounding error in the logits moves a choice only if the noise lies within that error of a boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# How many of the likeliest tokens are looked at first.
HEAD = 256


def row_noise(seeds: list[int], num_steps: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), one row a seed, one column a step, shape (len(seeds), num_steps)."""
    # Raw Philox words: their stream is fixed by the algorithm, while numpy may change how Generator turns words into floats.
    words = [np.random.Philox(key=seed).random_raw(num_steps) for seed in seeds]
    return (np.stack(words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return a mask (rows, vocabulary) of the smallest set of likeliest tokens whose probability is at least `top_p`."""
    import torch

    highest, likeliest = probabilities.max(dim=-1, keepdim=True)
    kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, likeliest, True)
    # Where the likeliest token is enough, nothing has to be ordered.
    open_rows = (highest.squeeze(-1) < top_p).nonzero().squeeze(-1)
    if len(open_rows):
        kept[open_rows] = _smallest_set(probabilities[open_rows], top_p)
    return kept


def _smallest_set(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    # Sorting a whole vocabulary takes as long as a small model's forward pass; the nucleus is nearly always within the first few hundred.
    width = probabilities.shape[-1]
    size = min(HEAD, width)
    while True:
        ordered = probabilities.topk(size, dim=-1).values
        inside = ordered.cumsum(dim=-1) - ordered < top_p  # the probability of all likelier tokens
        if size == width or not inside[:, -1].any():
            break
        size = min(16 * size, width)
    count = inside.sum(dim=-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    above, ties = probabilities > least, probabilities == least
    # Of equally likely tokens the first ones, as many as there is room for.
    return above | (ties & (ties.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))


def choose_tokens(logits: torch.Tensor, noise: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return one token id a row, shape (rows,). `logits` is (rows, vocabulary), `noise` (rows,) uniform in [0, 1).

    Temperature 0 is greedy; ties go to the lowest id.
    """
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    # float64: a sum over 150,000 tokens in float32 would be off by more than the rarest of them.
    weights = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        weights = weights * nucleus(weights, top_p)
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # The first token whose cumulative weight exceeds the target; a target rounded up to the total would fall behind the last token.
    target = torch.minimum(noise.to(cumulative).unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
