"""A pool of replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Spec = TypeVar("Spec")
Unit = TypeVar("Unit")
Result = TypeVar("Result")


class ActorPool(Generic[Spec, Unit, Result]):
    """A pool of replicas that stay alive and serve one spec after another."""

    def load(self, spec: Spec) -> None:
        """Let every replica serve `spec` from now on."""
        raise NotImplementedError

    def map(self, units: Mapping[int, Unit]) -> Iterator[tuple[int, Result]]:
        """Yield (index, result) of every unit exactly once, in the order in which they are done."""
        raise NotImplementedError
