"""How many tokens a row will have, before it is built: the same counts as rows.py, without keeping the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2sr.prompting import PromptStyle, render_prefix

Counts = npt.NDArray[np.int32]
_AT_ONCE = 256  # texts: the tokenizer makes some hundred bytes for each token of a batch


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
        lengths: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            # verbose=False: a warning about the model's longest input is beside the point when counting.
            found = self.tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)
            lengths += [len(row) for row in found["input_ids"]]
        return np.array(lengths, np.int32) + ended.astype(np.int32)
