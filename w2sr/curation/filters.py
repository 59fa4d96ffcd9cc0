"""Which rows are unfit to train on, whatever their verdict. Every refusal has a short code; the first that applies counts.

The order is fixed (ORDER): what a person decided, what the text is like, what it must not hold, what it repeats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from w2sr.curation.config import FilterConfig
from w2sr.grading.extract import extract_answers
from w2sr.grading.numbers import parse_number
from w2sr.textual.loops import is_loop, unique_word_ratio
from w2sr.textual.scripts import stray_scripts

ORDER = (
    "rejected_by_person",
    "edited",
    "empty",
    "too_short",
    "too_long",
    "loop",
    "stray_script",
    "special_token",
    "answer_in_prompt",
    "contaminated",
    "duplicate",
    "near_duplicate",
)
"""Every defect, in the order in which it is looked for. The engine's and the verifier's reasons ("truncated", ...) stand before them."""

_MIN_COPIED_WORDS = 12  # of the reference trace in the question: fewer are said by accident


@dataclass(frozen=True)
class TextFilter:
    """Judges one text after the other. `special_tokens` are the student's, which its tokenizer would read as a turn or an end."""

    config: FilterConfig
    special_tokens: Sequence[str] = ()

    def defect(self, text: str, question: str, num_tokens: int) -> str | None:
        """Return the first defect of `text` (supervised tokens: `num_tokens`) among "empty" to "special_token", or None."""
        config = self.config
        if not text.strip():
            return "empty"
        if config.min_tokens is not None and num_tokens < config.min_tokens:
            return "too_short"
        if config.max_tokens is not None and num_tokens > config.max_tokens:
            return "too_long"
        if (config.loops and is_loop(text)) or unique_word_ratio(text) < config.min_unique_word_ratio:
            return "loop"
        if config.stray_script_letters is not None and sum(stray_scripts(text, question).values()) >= config.stray_script_letters:
            return "stray_script"
        if any(token in text for token in self.special_tokens):
            return "special_token"
        return None


def states_its_answer(question: str, answer: str | None, reference: str | None) -> bool:
    r"""Return whether a question gives away its answer: marked as such (`\boxed{72}`, `#### 72`, "the answer is 72"), or its solution.

    The bare answer somewhere in the question is no leak: "7 apples" occurs in many a question whose answer is 7.
    """
    stated = extract_answers(question)
    if stated is not None and answer is not None and any(_same(given, answer) for given in (stated.first, stated.last)):
        return True
    words, asked = _words(reference or ""), _words(question)
    return len(words) >= _MIN_COPIED_WORDS and f" {' '.join(words)} " in f" {' '.join(asked)} "


def _same(given: str, answer: str) -> bool:
    one, other = parse_number(given), parse_number(answer)
    return one == other if one is not None and other is not None else given.casefold().strip(" .") == answer.casefold().strip(" .")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
