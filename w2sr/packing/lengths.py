"""How many tokens a row will have, before it is built: the same counts as rows.py, without keeping the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2sr.prompting import PromptStyle, render_prefixes, tokens_of

Counts = npt.NDArray[np.int32]
_AT_ONCE = 256  # texts: the tokenizer makes some hundred bytes for each token of a batch


@dataclass(frozen=True)
class LengthCounter:
    """Counts with a student's tokenizer, under its style."""

    tokenizer: Any
    style: PromptStyle

    def prefixes(self, questions: Sequence[str]) -> Counts:
        """Return the tokens before the answer, for each question."""
        found = [
            len(prefix.ids)
            for start in range(0, len(questions), _AT_ONCE)
            for prefix in render_prefixes(self.tokenizer, self.style, questions[start : start + _AT_ONCE])
        ]
        return np.array(found, np.int32)

    def supervised(self, texts: Sequence[str], ended: npt.NDArray[np.bool_]) -> Counts:
        """Return the supervised tokens of each text: its own and, where the trace `ended`, the end token."""
        parts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        lengths = [len(ids) for part in parts for ids in tokens_of(self.tokenizer, part)]
        return np.array(lengths, np.int32) + ended.astype(np.int32)
