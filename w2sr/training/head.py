"""A causal language model that can answer with the loss of its supervised tokens in place of logits. Imports torch: a door module.

`model(input_ids=..., supervised=...)` runs the body, and then the head's module computes the loss chunk by chunk (fused.py). The head stays
the module it was, so DeepSpeed's hooks gather its weight under ZeRO-3 as for any other, tied or not. Without `supervised` nothing changes.
What a model does with its head's output (a scale, a cap) is read from its configuration and proven on the model itself (`reproduces`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2sr.training.fused import Projection, Shape, Supervised, fused_loss

_GRID = 129
_LARGEST = 64.0  # far beyond where a cap of 30 or 50 bends


class HiddenStates:
    """In place of Supervised: asks for the body's hidden states [sequences, tokens, width]."""


@dataclass
class Head:
    """The output layer of a model, and how its output becomes logits."""

    model: Any
    module: torch.nn.Linear
    shape: Shape
    seen: Tensor | None = None  # hidden states that reached it while a probe ran
    probe: bool = False
    liger: Callable[..., Tensor] | None = None

    @property
    def projection(self) -> Projection:
        """How hidden states become logits; under ZeRO-3 of use only where the weight is gathered."""
        return Projection(self.module.weight, self.module.bias, self.shape)

    @contextmanager
    def probed(self) -> Iterator[None]:
        """Let the head give a grid of values in place of its product inside."""
        self.probe = True
        try:
            yield
        finally:
            self.probe = False
            self.seen = None


def attach(model: Any, liger: Callable[..., Tensor] | None = None) -> Head | None:
    """Teach `model` to answer `supervised`; return None for a model whose head is no plain linear layer (it stays as it was).

    `liger`: computes the loss in place of fused.fused_loss, from the same arguments.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, module = causal.base_model, causal.get_output_embeddings()
    if body is causal or not isinstance(module, torch.nn.Linear) or type(module).forward is not torch.nn.Linear.forward:
        return None
    head = Head(causal, module, _shape(causal.config), liger=liger)
    _teach_head(head)
    plain = causal.forward

    @functools.wraps(plain)
    def forward(*args: Any, supervised: Supervised | HiddenStates | None = None, **kwargs: Any) -> Any:
        if supervised is None:
            return plain(*args, **kwargs)
        hidden = body(*args, **kwargs).last_hidden_state
        return hidden if isinstance(supervised, HiddenStates) else module(hidden, supervised=supervised)

    causal.forward = forward
    return head


def _teach_head(head: Head) -> None:
    linear = head.module.forward

    def forward(hidden: Tensor, supervised: Supervised | None = None) -> Tensor:
        if head.probe:
            head.seen = hidden
            return _grid(hidden).expand(*hidden.shape[:-1], _GRID)
        if supervised is None:
            return linear(hidden)
        picked = hidden.flatten(0, 1).index_select(0, supervised.positions)
        return (head.liger or fused_loss)(picked, head.projection, supervised)

    head.module.forward = forward  # type: ignore[method-assign, assignment]


def reproduces(head: Head, run: Callable[..., Any], input_ids: Tensor) -> bool:
    """Return whether the fused path computes this model's logits. `run(**inputs)` is the model's forward pass; all ranks call it together.

    Proven on the model's own code, on `input_ids` [sequences, tokens]: the head sees the body's hidden states, and what follows the head
    does to any value, small or large, what `head.shape` does.
    """
    with head.probed():
        after = run(input_ids=input_ids).logits.float()
        seen = head.seen
        hidden = run(input_ids=input_ids, supervised=HiddenStates())
        if head.model.get_output_embeddings() is not head.module:  # an adapter took its place
            return False
        if seen is None or after.shape[-1] != _GRID:
            return False
        tolerance = 1e-5 if hidden.dtype == torch.float32 else 2e-2
        sees_hidden = (seen - hidden).abs().max() <= tolerance * hidden.abs().max()
        expected = head.shape(_grid(hidden).float()).expand_as(after)
        return bool(sees_hidden) and torch.allclose(after, expected, rtol=tolerance, atol=1e-5)


def _grid(like: Tensor) -> Tensor:
    return torch.linspace(-_LARGEST, _LARGEST, _GRID, dtype=torch.float32, device=like.device).to(like.dtype)


def _shape(config: Any) -> Shape:
    """Return the scale and the cap that the configuration names: Granite divides, Cohere multiplies, Gemma caps."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)
    return Shape(scale, float(cap) if cap else None)
