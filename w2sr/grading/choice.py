r"""Multiple choice: which letter an answer names, and which letter is right.

Options come from the prompt's metadata: `{"options": ["3", "5", ...]}` (or "choices"), or a mapping of letters to texts.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from w2sr.grading.extract import Answers, extract_answers

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.):,].*)?", re.DOTALL | re.ASCII)
_LOWER = re.compile(r"\(?([a-z])\)?[.:]?", re.ASCII)
_PREFIX = re.compile(r"(?:option|choice|answer|letter)\s*:?\s*", re.IGNORECASE)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm|boldsymbol)\s*\{([^{}]*)\}")
_IN_TEXT = re.compile(r"(?<!\w)\(([A-Z])\)(?!\w)|^[ \t*]*([A-Z])[.)]?[ \t*]*$", re.MULTILINE | re.ASCII)


def extract_choices(text: str) -> Answers | None:
    """Return the first and last final answer: by the marks of extract.py, else `(B)` in the text or a letter on a line of its own."""
    marked = extract_answers(text)
    if marked is not None:
        return marked
    found = [one or other for one, other in _IN_TEXT.findall(text)]
    return Answers(found[0], found[-1]) if found else None


@lru_cache(maxsize=4096)
def options_of(metadata: str) -> tuple[tuple[str, str], ...]:
    """Return the (letter, text) pairs that a prompt's metadata holds, or none."""
    found = json.loads(metadata or "{}")
    options = (found.get("options") or found.get("choices")) if isinstance(found, dict) else None
    if isinstance(options, dict):
        return tuple((str(letter).strip().upper(), str(text)) for letter, text in options.items())
    if isinstance(options, list):
        return tuple((letter, str(text)) for letter, text in zip(LETTERS, options))
    return ()


def letter_of(answer: str, options: tuple[tuple[str, str], ...]) -> str | None:
    r"""Return the letter that an answer names: `B`, `(B)`, `B. 5 cm`, `\text{B}`, `option B`, or the text of exactly one option."""
    text = " ".join(_WRAPPER.sub(r"\1", answer.replace("*", " ")).strip().strip("$").split())
    by_text = [letter for letter, option in options if _plain(option) == _plain(text)]
    if len(by_text) == 1:
        return by_text[0]  # an option's text wins: the option "A" of a question on blood groups may have the letter C
    text = _PREFIX.sub("", text, count=1)
    found = _LETTER.fullmatch(text) or _LOWER.fullmatch(text)
    letter = found[1].upper() if found else None
    return letter if letter is not None and (not options or letter in dict(options)) else None


def _plain(text: str) -> str:
    return " ".join(_WRAPPER.sub(r"\1", text).strip().strip("$.").split()).casefold()
