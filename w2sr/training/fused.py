"""Losses of supervised tokens straight from hidden states: the logits of one chunk of tokens exist at a time, never all.

The gradients of hidden states and of the head's weight are made in the forward pass, while a chunk's logits are there; the backward pass
only scales them. So nothing is computed twice and nothing of the size [tokens, vocabulary] is kept. Imports torch: a door module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # logits held at a time, in fp32: 64 MiB
# Logits' gradients are softmax probabilities, many of which fp16 would flush to 0; the factor is taken back in the backward pass.
_FP16_SCALE = 256.0


@dataclass(frozen=True)
class TokenLoss:
    """The loss of one token from its logits z, p = softmax(z), and its target y (formulas and sources: docs/losses.md).

    At most one of the first three is not 0; all 0: -log p_y. `kl_to_base` times KL(base || student) comes on top.
    """

    label_smoothing: float = 0.0
    gce_q: float = 0.0
    confidence: float = 0.0
    kl_to_base: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What a model does with its head's output x: z = cap * tanh(scale * x / cap); without a cap, z = scale * x."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Return logits; `output` may be overwritten."""
        logits = output.mul_(self.scale) if self.scale != 1 else output
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def chain(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """Return the gradient of the head's output from that of `logits`, which are needed only under a cap. In place."""
        if self.cap is not None:
            assert logits is not None
            gradient.mul_(logits.div_(self.cap).square_().neg_().add_(1))
        return gradient.mul_(self.scale) if self.scale != 1 else gradient


@dataclass(frozen=True)
class Projection:
    """How hidden states [tokens, width] become logits; `weight` None: they are logits already."""

    weight: Tensor | None
    bias: Tensor | None = None
    shape: Shape = Shape()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fresh logits [tokens, vocabulary], fp32 (fp64 for fp64)."""
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        if self.weight is None:
            return hidden.to(wide, copy=True)
        return self.shape(torch.nn.functional.linear(hidden, self.weight, self.bias).to(wide))


@dataclass
class Supervised:
    """The supervised tokens of a micro-batch, and what is asked of them.

    `positions` [tokens]: where they are predicted from, in flattened [sequences * tokens]; `targets`, `weights` [tokens]; `base`: the base
    model's states at these positions [tokens, width] and how they become logits; `reweigh`: takes the NLL [tokens] and returns the weights
    that count. `nll` [tokens] is filled in by the forward pass.
    """

    positions: Tensor
    targets: Tensor
    weights: Tensor
    loss: TokenLoss
    base: tuple[Tensor, Projection] | None = None
    reweigh: Callable[[Tensor], Tensor] | None = None
    nll: Tensor | None = None

    def keep(self, start: int, stop: int) -> None:
        """Drop what is not predicted from positions `start` to `stop`, and number the rest from `start`."""
        own = (self.positions >= start) & (self.positions < stop)
        self.positions, self.targets, self.weights = self.positions[own] - start, self.targets[own], self.weights[own]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused_loss(hidden: Tensor, projection: Projection, asked: Supervised) -> Tensor:
    """Return the sum over tokens of weight * loss, fp32 (fp64 for fp64), differentiable in `hidden` [tokens, width] and the projection.

    Fills in `asked.nll`.
    """
    arguments = (hidden, projection.weight, projection.bias, projection.shape, asked, torch.is_grad_enabled())
    total: Tensor = _Fused.apply(*arguments)  # type: ignore[no-untyped-call]
    return total


def token_losses(logits: Tensor, asked: TokenLoss, targets: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Return losses and NLL [tokens], and what makes the gradient of the losses' sum [tokens, vocabulary] out of `logits`, in place.

    All these gradients have the form factor * p - (a few entries) - (a constant) - kl * base, so none needs autograd.
    """
    factor, top, epsilon = 1.0, None, asked.label_smoothing
    picked = logits.gather(1, targets[:, None])[:, 0]
    mean = logits.mean(1) if epsilon else None
    if asked.confidence:
        top_logits, top = logits.max(1)
    peak = logits.amax(1, keepdim=True)
    base_log = None if base is None else torch.log_softmax(base, 1)
    expected = None if base_log is None else torch.linalg.vecdot(base_log.exp(), base_log - logits)
    p = logits.sub_(peak).exp_()
    sums = p.sum(1, keepdim=True)
    log_sum = (peak + sums.log())[:, 0]
    nll = log_sum - picked
    losses, scale = nll, torch.ones_like(nll)
    if mean is not None:
        losses = (1 - epsilon) * nll + epsilon * (log_sum - mean)
    elif asked.gce_q:
        losses, scale = -torch.expm1(-asked.gce_q * nll) / asked.gce_q, torch.exp(-asked.gce_q * nll)
    elif top is not None:
        losses = (1 - asked.confidence) * nll + asked.confidence * (log_sum - top_logits)
    if expected is not None:
        losses = losses + asked.kl_to_base * (expected + log_sum)
        factor = asked.kl_to_base

    def gradient() -> Tensor:
        p.mul_(((scale + factor) if base_log is not None else scale)[:, None] / sums)
        share = 1 - epsilon - asked.confidence
        p.scatter_add_(1, targets[:, None], -(share * scale)[:, None])
        if top is not None:
            p.scatter_add_(1, top[:, None], torch.full_like(p[:, :1], -asked.confidence))
        if epsilon:
            p.sub_(epsilon / p.shape[1])
        if base_log is not None:
            p.sub_(base_log.exp(), alpha=asked.kl_to_base)
        return p

    return losses, nll, gradient


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Shape, asked: Supervised, wants_gradient: bool
    ) -> Tensor:
        projection = Projection(weight, bias, shape)
        width = hidden.shape[1] if weight is None else weight.shape[0]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        parts = list(_parts(len(hidden), max(1, CHUNK_ELEMENTS // width)))
        asked.nll = hidden.new_zeros(len(hidden), dtype=wide)
        weights = asked.weights.to(wide)
        if asked.reweigh is not None:
            for part in parts:
                asked.nll[part] = token_losses(projection.logits(hidden[part]), TokenLoss(), asked.targets[part], None)[1]
            weights = asked.reweigh(asked.nll).to(wide)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad) if wants_gradient else None
        total = hidden.new_zeros((), dtype=torch.float64)
        for part in parts:
            base = None if asked.base is None else asked.base[1].logits(asked.base[0][part])
            logits = projection.logits(hidden[part])
            kept = logits.clone() if shape.cap is not None and gradients is not None else None
            losses, asked.nll[part], gradient = token_losses(logits, asked.loss, asked.targets[part], base)
            total += (losses * weights[part]).sum(dtype=torch.float64)
            if gradients is not None:
                gradients.add(part, shape.chain(gradient().mul_(weights[part, None]), kept))
        if gradients is not None:
            ctx.save_for_backward(*gradients.done())
            ctx.scale = gradients.scale
        return total.to(wide)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        factor = gradients[0] / ctx.scale
        return (*(None if saved is None else saved.mul_(factor) for saved in ctx.saved_tensors), None, None, None)


class _Gradients:
    """The gradients of hidden states, weight and bias, chunk by chunk; those of weight and bias are summed in fp32 at least."""

    def __init__(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self.scale = _FP16_SCALE if hidden.dtype == torch.float16 else 1.0
        self._of_hidden = torch.zeros_like(hidden) if needed[0] else None
        self._of_weight = _zeros(weight) if needed[1] else None
        self._of_bias = _zeros(bias) if needed[2] else None

    def add(self, part: slice, of_logits: Tensor) -> None:
        """Add what the gradient of the head's output [tokens, vocabulary] means for the tokens `part`."""
        if self._of_bias is not None:
            self._of_bias += of_logits.sum(0) * self.scale
        narrow = of_logits.mul_(self.scale).to(self._hidden.dtype) if self.scale != 1 else of_logits.to(self._hidden.dtype)
        if self._of_hidden is not None:
            self._of_hidden[part] = narrow if self._weight is None else narrow @ self._weight
        if self._of_weight is not None:
            if self._of_weight.dtype == narrow.dtype:
                self._of_weight.addmm_(narrow.t(), self._hidden[part])
            else:
                self._of_weight += narrow.t() @ self._hidden[part]

    def done(self) -> tuple[Tensor | None, ...]:
        """Return all three in the dtypes of what they are gradients of."""
        like = (self._hidden, self._weight, self._bias)
        found = (self._of_hidden, self._of_weight, self._of_bias)
        return tuple(None if one is None or other is None else one.to(other.dtype) for one, other in zip(found, like, strict=True))


def _zeros(like: Tensor | None) -> Tensor | None:
    if like is None:
        return None
    return torch.zeros_like(like, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
