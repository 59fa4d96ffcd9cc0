"""How many tokens a row will have, before it is built: the same counts as rows.py, without keeping the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2sr.prompting import PromptStyle, render_prefix

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class LengthCounter:
    """Counts with a student's tokenizer, under its style."""

    tokenizer: Any
    style: PromptStyle

    def prefixes(self, questions: Sequence[str]) -> Counts:
        """Return the tokens before the answer, for each question."""
        return np.array([len(render_prefix(self.tokenizer, self.style, question).ids) for question in questions], np.int32)

    def supervised(self, texts: Sequence[str], ended: npt.NDArray[np.bool_]) -> Counts:
        """Return the supervised tokens of each text: its own and, where the trace `ended`, the end token."""
        if not texts:
            return np.zeros(0, np.int32)
        # verbose=False: a warning about the model's longest input is beside the point when counting.
        ids = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], np.int32) + ended.astype(np.int32)
