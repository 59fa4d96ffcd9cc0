"""NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise on token embeddings in training. Imports torch: a door module."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from w2sr.packing.pack import IGNORED, MicroBatch


def row_lengths(batch: MicroBatch) -> npt.NDArray[np.int64]:
    """Return [sequences, tokens]: at each token the tokens of its row. Padding behind a padded row has that row's."""
    lengths = np.empty_like(batch.input_ids)
    for number, labels in enumerate(batch.labels):
        if batch.position_ids is None:
            supervised = np.flatnonzero(labels != IGNORED)
            lengths[number] = supervised[-1] + 1 if len(supervised) else len(labels)  # a row ends in a supervised token
        else:
            starts = np.flatnonzero(batch.position_ids[number] == 0)
            of_rows = np.diff(np.append(starts, len(labels)))
            lengths[number] = np.repeat(of_rows, of_rows)
    return lengths


class Noise:
    """Adds noise to what the embedding of a model returns, after each `draw` once: U(-1, 1) * alpha / sqrt(tokens of the row * width).

    Drawn by (seed, step, rank, micro-batch): a resumed training draws what the calm one drew, and no generator's state is saved.
    """

    def __init__(self, model: Any, alpha: float, seed: int, rank: int) -> None:
        self._alpha, self._seed, self._rank = alpha, seed, rank
        self._next: tuple[int, int, Tensor] | None = None
        model.get_input_embeddings().register_forward_hook(self._add)

    def draw(self, step: int, number: int, batch: MicroBatch) -> None:
        """Let the next forward pass, of micro-batch `number` of `step`, have noise."""
        self._next = (step, number, torch.from_numpy(row_lengths(batch)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _add(self, _: Any, __: Any, embedded: Tensor) -> Tensor:
        if self._next is None:
            return embedded
        (step, number, lengths), self._next = self._next, None
        seed = np.random.SeedSequence([self._seed, step, self._rank, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(embedded.device).manual_seed(int(seed >> 1))
        drawn = torch.rand(embedded.shape, generator=generator, device=embedded.device).mul_(2).sub_(1)
        size = self._alpha / (lengths.to(embedded.device) * embedded.shape[-1]).sqrt()
        return embedded + drawn.mul_(size[..., None]).to(embedded.dtype)
