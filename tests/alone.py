"""A model on its own, without DeepSpeed and without other ranks, in the places where losses expect an Engine and a Group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from w2sr.training.dist import Group


class Alone(Group):
    """A group of this process, without collectives."""

    def sum(self, values: Any) -> list[float]:
        return list(values)

    def all(self, value: Any) -> list[Any]:
        return [value]


class Plain:
    """A model in the place of an Engine."""

    def __init__(self, model: Any) -> None:
        self.module = model

    def run(self, input_ids: Any, position_ids: Any, **asked: Any) -> Any:
        return self.module(input_ids=input_ids, position_ids=position_ids, use_cache=False, **asked)

    def forward(self, input_ids: Any, position_ids: Any) -> Any:
        return self.run(input_ids, position_ids).logits

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.module.eval()
        with torch.no_grad():
            yield
        self.module.train()
