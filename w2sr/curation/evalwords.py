"""Texts as words for comparing: case, punctuation, spacing and the spelling of numbers do not count."""

from __future__ import annotations

import re

ANY_NUMBER = "<number>"

# A number may follow a letter ("x2") but never loses its digits to one; signs are words, for formulas consist of them.
_TOKEN = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+|[^\W\d_]+|[+\-*/=^<>%]")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "’": "'"})
# fmt: off
_SPELLED_OUT = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]
# fmt: on
_SPELLED = {word: str(value) for value, word in enumerate(_SPELLED_OUT)}


def plain_words(text: str) -> list[str]:
    """Return the words of a text; every number in one spelling: "1,200.0", "1200" and "1200.00" are the same word, so are "five" and 5."""
    found = _TOKEN.findall(text.translate(_SIGNS).casefold())
    return [_number(word) if word[0] in "0123456789." else _SPELLED.get(word, word) for word in found]


def without_numbers(words: list[str]) -> list[str]:
    """Return plain words with ANY_NUMBER in place of each number: the same exercise with other numbers reads the same."""
    return [ANY_NUMBER if word[0] in "0123456789" else word for word in words]


def is_word(word: str) -> bool:
    """Return whether a word is made of letters: numbers and signs alone say little."""
    return word[0].isalpha()


def _number(word: str) -> str:
    if word.isdecimal() and word[0] != "0":
        return word
    whole, _, decimals = word.replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{decimals}" if decimals else whole
