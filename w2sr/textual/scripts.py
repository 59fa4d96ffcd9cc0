"""Scripts that do not belong: a teacher that falls into another language in mid-thought."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import regex

# Letters that are at home in any mathematical text: formulas and units are Latin and Greek in every language.
_EVERYWHERE = frozenset({"Latin", "Greek"})
# Languages that are written in several scripts: what one of them in the question allows besides.
_COMPANIONS = {
    "Hiragana": {"Han", "Katakana"},
    "Katakana": {"Han", "Hiragana"},
    "Hangul": {"Han"},
    "Han": {"Bopomofo"},
}
# fmt: off
_SCRIPTS = [
    "Latin", "Greek", "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Cyrillic", "Arabic", "Hebrew", "Devanagari",
    "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao",
    "Tibetan", "Myanmar", "Khmer", "Georgian", "Armenian", "Ethiopic", "Mongolian", "Cherokee",
]
# fmt: on
# Signs that belong to no script (digits, operators, the letters of mathematical alphabets) are Common; accents are Inherited.
_LETTER = regex.compile(r"(?V1)[\p{L}--[\p{Script=Common}\p{Script=Inherited}]]")
_OF_SCRIPT = [(name, regex.compile(rf"\p{{Script={name}}}")) for name in _SCRIPTS]


def stray_scripts(text: str, question: str) -> dict[str, int]:
    """Return the letters of `text`, counted by Unicode script, whose script neither `question` uses nor mathematics; empty: none.

    Latin and Greek never count. Names are Unicode's ("Han", "Cyrillic", ...), rare scripts are "other". A script says nothing about
    languages that share it: French in an English trace is not seen.
    """
    if text.isascii():
        return {}
    found = scripts_of(text)
    asked = scripts_of(question).keys()
    allowed = _EVERYWHERE.union(asked, *(_COMPANIONS.get(script, ()) for script in asked))
    return {script: number for script, number in found.items() if script not in allowed}


def scripts_of(text: str) -> dict[str, int]:
    """Return the number of letters of each script in `text`, most frequent first."""
    return dict(Counter(_script(letter) for letter in _LETTER.findall(text)).most_common())


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return next((name for name, pattern in _OF_SCRIPT if pattern.match(letter)), "other")
