"""From examples to a rows file: tokenised and checked once, in a few processes, before any rank exists.

Ranks that wait for one of them to tokenise run into the timeouts of collectives; so this is done by the driver. A rows file is named after
everything that decides what is in it, so whoever needs the same rows finds them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2sr.artifacts import digest_of, file_digest
from w2sr.packing.rows import AT_ONCE, Gate, ModelLimits, Sifted, Tally, batched, model_limits
from w2sr.prompting import PromptStyle
from w2sr.records import Example
from w2sr.training.data import ROWS, Block, RowFacts, write_rows

EXAMPLES_A_WORKER = 20_000  # fewer are not worth another process: it takes seconds to start
VERSION = 1  # of what the gate makes of an example; another one makes all rows again
_AHEAD = 4  # tasks a worker may lie behind
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_gates: list[Gate] = []  # of this worker process

Weigh = Callable[[Example], float]


@dataclass(frozen=True)
class Recipe:
    """How examples become rows: the tokenizer and limits of the model in the folder `model`, a style, and the longest row."""

    model: str
    style: PromptStyle
    max_length: int

    def gate(self) -> Gate:
        """Return the gate. Raises UserError when tokenizer, model and length do not go together."""
        return Gate(self.tokenizer(), self.style, self.limits(), self.max_length)

    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    def limits(self) -> ModelLimits:
        """Return what a row must respect."""
        return model_limits(self.model)

    def key(self, *content: Any) -> str:
        """Return a digest of this recipe, of the files that hold the tokenizer, and of `content` (which examples, which weights)."""
        import tokenizers

        files = {path.name: file_digest(path) for path in sorted(Path(self.model).iterdir()) if _shapes_tokens(path)}
        limits, style = dataclasses.asdict(self.limits()), self.style.identity()
        return digest_of([VERSION, tokenizers.__version__, files, limits, style, self.max_length, list(content)])


def _shapes_tokens(path: Path) -> bool:
    """Whether a file of a model's folder may belong to its tokenizer or chat template: all but the weights."""
    return path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model", ".tiktoken") and "index" not in path.name


def tokenise(
    path: Path,
    recipe: Recipe,
    examples: Iterable[Example],
    weigh: Weigh | None,
    num_workers: int,
    advance: Callable[[int], None],
    is_part: bool = False,
) -> RowFacts:
    """Write the rows file of `examples`, in their order, and return its facts.

    `weigh` gives a trace its weight in the loss (None: 1). `advance` is told how many more examples are done. Raises UserError as
    `packing.rows.build_rows` does; then there is no file. `is_part`: of an arm, so that few rows or none are as good as many.
    """
    assert path.name.endswith(ROWS), f"a rows file is called *{ROWS}, not {path.name}"
    tally = Tally(recipe.max_length)

    def blocks() -> Iterator[Block]:
        for some, (block, sifted) in _sifted(recipe, examples, num_workers):
            tally.add(len(block.lengths), sifted)
            advance(len(some))
            if len(block.lengths):
                yield block if weigh is None else _weighed(block, some, weigh)
        if not is_part:
            tally.check()

    return write_rows(path, blocks(), tally)


def workers_for(num_examples: int, most: int | None) -> int:
    """Return how many processes tokenise `num_examples`: as many as pay, and at most `most` (None: the processors of this machine)."""
    return max(1, min(num_examples // EXAMPLES_A_WORKER, most or len(os.sched_getaffinity(0))))


def _sifted(recipe: Recipe, examples: Iterable[Example], num_workers: int) -> Iterator[tuple[list[Example], tuple[Block, Sifted]]]:
    """Yield examples and what the gate makes of them, in their order, some at a time."""
    if num_workers == 1:
        gate = recipe.gate()
        for some in batched(examples, AT_ONCE):
            yield some, _sift(gate, some)
        return
    recipe.gate()  # what is wrong with the recipe is said once, and before processes are started
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[list[Example], Future[tuple[Block, Sifted]]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _become_worker, (recipe, os.getpid())) as pool:
        try:
            for some in batched(examples, AT_ONCE):
                if len(waiting) == _AHEAD * num_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
                waiting.append((some, pool.submit(_sift_here, some)))
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _sift(gate: Gate, examples: Sequence[Example]) -> tuple[Block, Sifted]:
    sifted = gate.sift(examples)
    return Block.of(sifted.kept), dataclasses.replace(sifted, kept=[])


def _sift_here(examples: Sequence[Example]) -> tuple[Block, Sifted]:
    return _sift(_gates[0], examples)


def _become_worker(recipe: Recipe, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _gates.append(recipe.gate())


def _weighed(block: Block, examples: Sequence[Example], weigh: Weigh) -> Block:
    weights = {example.example_id: weigh(example) for example in examples}
    return dataclasses.replace(block, weights=np.array([weights[name] for name in block.example_ids], dtype=np.float32))
