"""Judge traces: one Verification for each trace, in the order given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from w2sr.grading.config import VerifyConfig
from w2sr.records import Prompt, Trace, Verification


def grade_traces(traces: Sequence[Trace], prompts: Mapping[str, Prompt], config: VerifyConfig) -> list[Verification]:
    """Return the verdict on each of `traces`, in their order; `prompts` maps prompt_id to the prompt each of them answers."""
    raise NotImplementedError
