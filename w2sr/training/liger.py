"""The fused linear cross-entropy of liger-kernel, for the plain NLL on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from w2sr.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from w2sr.training.fused import Projection, Supervised


def liger_loss() -> Callable[[Tensor, Projection, Supervised], Tensor]:
    """Return what takes the place of fused.fused_loss. Raises UserError where liger-kernel is not installed."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise UserError(
            f"train.loss.kernel=liger, but liger-kernel cannot be imported ({error}); pip install 'w2sr[liger]', or leave the key out"
        ) from error
    import torch

    from w2sr.training.fused import fused_loss

    def loss(hidden: Tensor, projection: Projection, asked: Supervised) -> Tensor:
        if not len(asked.targets):  # a rank without rows in this step; the kernel divides by their number
            nothing: Tensor = fused_loss(hidden, projection, asked)
            return nothing
        scale, cap = projection.shape.scale, projection.shape.cap
        assert scale == 1 or projection.bias is None, "a bias would be scaled with the hidden states"
        kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, accum_dtype=torch.float32)
        total: Tensor = kernel(projection.weight, hidden * scale if scale != 1 else hidden, asked.targets, projection.bias)
        asked.nll = total.detach()[None]
        return total

    return loss
