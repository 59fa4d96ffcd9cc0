r"""Final answers in a completion, first and last, in time linear in its length whatever it holds.

Four marks are understood. The strongest kind that occurs in the text decides, weaker kinds are then ignored:

1. `\boxed{...}` or `\fbox{...}` with balanced braces; of nested boxes the innermost;
2. `<answer>...</answer>`;
3. `#### N` (to the end of the line);
4. "answer is N", "answer: N" (to the end of the sentence or line).

A mark with nothing in it, or one that is never closed, is no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# One backslash, or two where a model escaped it as in JSON.
_BRACES = re.compile(r"\\\\?(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_TAGS = re.compile(r"</?answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_PHRASE = re.compile(r"\banswer\**(?: is\b|:)[ \t:*]*([^\n]*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Answers:
    """The first and the last final answer of a completion; they are the same text when there is only one."""

    first: str
    last: str


def extract_answers(text: str) -> Answers | None:
    """Return the first and last answer of the strongest kind of mark in `text`, or None when it gives no answer."""
    for kind in (_boxed, _tagged, _hashed, _phrased):
        found = [answer for answer in (raw.strip() for raw in kind(text)) if answer]
        if found:
            return Answers(found[0], found[-1])
    return None


def reference_answer(text: str) -> str:
    r"""Return the final answer of a reference: of a solution that ends in `#### 72` or holds `\boxed{72}`; else `text` itself."""
    for kind in (_boxed, _hashed):
        found = [answer for answer in (raw.strip() for raw in kind(text)) if answer]
        if found:
            return found[-1]
    return text.strip()


def _boxed(text: str) -> list[str]:
    if "boxed" not in text and "fbox" not in text:
        return []
    answers: list[str] = []
    open_braces: list[int] = []  # where the content of a box starts; -1 for any other brace
    inner_end = -1  # start of the last box that was closed: a box around it is not the innermost
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{":
            open_braces.append(-1)
        elif token == "}":
            start = open_braces.pop() if open_braces else -1
            if start > inner_end:
                answers.append(text[start : match.start()])
                inner_end = start
        elif token[-1] == "{" and len(token) > 2:
            open_braces.append(match.end())
    return answers


def _tagged(text: str) -> list[str]:
    answers, start = [], -1
    for match in _TAGS.finditer(text):
        if match.group()[1] != "/":
            start = match.end()
        elif start >= 0:
            answers.append(text[start : match.start()])
            start = -1
    return answers


def _hashed(text: str) -> list[str]:
    return _HASHES.findall(text) if "####" in text else []


def _phrased(text: str) -> list[str]:
    # Cut at the first full stop before white space: "1.5" survives, "72. That is" gives "72".
    return [_SENTENCE_END.split(tail, maxsplit=1)[0].strip(" *") for tail in _PHRASE.findall(text)]
