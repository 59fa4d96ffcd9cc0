"""One engine in a process of its own: the worker that the actor pool runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from w2sr.teachers.engine import Completion, Engine, GeneratorSpec, Request


@dataclass(frozen=True)
class UnitResult:
    """A unit's completions, in the order of its requests, with what made them and the seconds it took."""

    completions: list[Completion]
    engine: str
    template_hash: str
    seconds: float


class EngineWorker:
    """Serves one generator after another with `make_engine(spec, device)`."""

    def __init__(self, make_engine: Callable[[GeneratorSpec, str], Engine], device: str) -> None:
        self._make_engine = make_engine
        self._device = device
        self._spec: GeneratorSpec | None = None
        self._engine: Engine | None = None

    def load(self, spec: GeneratorSpec) -> None:
        """Serve `spec` from now on."""
        if spec != self._spec:
            self._engine = None  # its memory is needed for the next one
            self._engine = self._make_engine(spec, self._device)
            self._spec = spec

    def run(self, unit: list[Request]) -> UnitResult:
        """Complete a unit's requests."""
        assert self._engine is not None, "load() comes before run()"
        began = time.monotonic()
        completions = self._engine.generate(unit)
        assert len(completions) == len(unit), f"{len(completions)} completions for {len(unit)} requests"
        return UnitResult(completions, self._engine.name, self._engine.template_hash, time.monotonic() - began)


@dataclass(frozen=True)
class HFWorkerFactory:
    """Makes, inside its own process, a worker on transformers with `num_threads` threads, on "cpu" or "cuda"."""

    num_threads: int
    device: str

    def __call__(self) -> EngineWorker:
        import torch

        from w2sr.teachers.hf_engine import HFEngine

        torch.set_num_threads(self.num_threads)
        return EngineWorker(HFEngine, self.device)
