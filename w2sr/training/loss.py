"""Token NLL from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2sr.packing.pack import IGNORED

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 26  # fp32 logits held at a time: 256 MiB


def sum_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the summed NLL of the supervised tokens, an fp32 scalar (fp64 for fp64 logits).

    `logits` [sequences, tokens, vocabulary] of position t predict `labels` [sequences, tokens] at t + 1; IGNORED labels do not count.
    Only supervised positions are copied to fp32, a chunk at a time; with several chunks the copies are made again in the backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    targets = labels[:, 1:]
    wanted = targets != IGNORED
    picked, targets = logits[:, :-1][wanted], targets[wanted]
    size = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    if len(targets) <= size:
        return _nll(picked, targets)
    total: torch.Tensor = logits.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), size):
        part = checkpoint(_nll, picked[start : start + size], targets[start : start + size], use_reentrant=False)
        total = total + part
    return total


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    import torch

    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, targets, reduction="sum")
