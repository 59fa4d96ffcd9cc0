"""What an engine is: something that loads a generator and completes requests. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from w2sr.prompting import PromptStyle
from w2sr.records import FinishReason
from w2sr.teachers.config import SamplingConfig


@dataclass(frozen=True)
class GeneratorSpec:
    """A model under a name, asked in one style and sampled in one way. Made by `w2sr.teachers.models.generator_spec`.

    `name` enters the trace ids (a teacher's name, or the label of a model under evaluation), `model` is an existing folder,
    `batch_size` the number of requests decoded together.
    """

    name: str
    model: str
    model_digest: str
    style: PromptStyle
    sampling: SamplingConfig
    batch_size: int


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make: sample `sample_index` of a prompt. `seed` decides its noise and nothing else does."""

    trace_id: str
    prompt_id: str
    sample_index: int
    question: str
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of a request. `num_tokens` counts generated tokens including the end-of-sequence token, which `text` has not.

    With `finish_reason` "error" the text is empty, `num_tokens` is 0 and `error` says why.
    """

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    error: str | None = None


class Engine(Protocol):
    """A loaded generator."""

    name: str
    template_hash: str

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Complete `requests`, in their order. The same list gives the same completions, on whichever replica.

        A request that cannot be completed (prompt too long, numbers not finite) becomes a completion with finish_reason "error".
        """
        ...
