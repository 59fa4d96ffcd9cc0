r"""The surface of an answer: dollars, spacing, synonyms of commands, units and words around a number. No value is computed here."""

from __future__ import annotations

import re

from w2sr.grading.vocabulary import NO_UNITS, SHORT_UNITS, UNIT_ALIASES

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
        "π": "\\pi ",
        "∞": "\\infty ",
        "°": "^\\circ ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "√": "\\sqrt ",
        "∪": "\\cup ",
        "∈": "\\in ",
        "±": "\\pm ",
        "²": "^2",
        "³": "^3",
        "θ": "\\theta ",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "€": "\\text{euro}",
        "£": "\\text{pound}",
    }
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\!,|,\\,|\\,)\s*(?=\d{3}(?!\d))", re.ASCII)
# Each row: what is found, and its replacement; "\\\\" (a row's end in a matrix) is found first and stays.
_COMMANDS = re.compile(
    r"(\\\\)|(\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|displaystyle|limits|mathstrut)(?![A-Za-z])|\\[!;:]|\\,|~)"
    r"|(\\(?:quad|qquad)(?![A-Za-z])|\\ )"
    r"|\\(dfrac|tfrac|cfrac|leqslant|leq|geqslant|geq|lbrace|rbrace|lbrack|rbrack|mbox|mathrm|textrm|textbf|textit|textsf|texttt|textnormal"
    r"|mathbf|mathit|operatorname|degree|lt|gt|infin|ast|star)(?![A-Za-z])"
)
_SYNONYMS = {
    "dfrac": "\\frac",
    "tfrac": "\\frac",
    "cfrac": "\\frac",
    "leqslant": "\\le",
    "leq": "\\le",
    "geqslant": "\\ge",
    "geq": "\\ge",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "degree": "^\\circ",
    "lt": "<",
    "gt": ">",
    "infin": "\\infty",
    "ast": "*",
    "star": "*",
}
_WRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]+(?:(?:[ ']|[.,] ?|(?<=[A-Za-z]{2})-(?=[A-Za-z]{2}))[A-Za-z]+)*")
_OPENING, _CLOSING = ("{", "(", "["), ("}", ")", "]")

_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*$")
_PERCENT = re.compile(r"\s*(?:\\?%|percent)$")
_CURRENCY = re.compile(r"(-?)\s*(?:\\\$|\$|\\text\{(euro|pound)\})\s*(.*)", re.DOTALL)
_TEXT_UNIT = re.compile(r"\s*\\text\s*\{([A-Za-z .\\/-]*)\}\s*(?:\^\s*(?:\{([23])\}|([23])))?$")
_PLAIN_UNIT = re.compile(r"(?<=[\d})\s])\s*([A-Za-z]+(?:[ .]+[A-Za-z]+){0,3}[ .]*)(?:\^\s*(?:\{([23])\}|([23])))?$")


def clean(text: str) -> str:
    r"""Return `text` without dollars, spacing, sizes of brackets; with one name for each thing (\frac, \text, \le, ...)."""
    text = text.translate(_CHARACTERS) if not text.isascii() else text
    text = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            text = inner.strip() if "$" not in inner.replace("\\$", "") else text
    if "\\" in text or "{" in text:
        text = _COMMANDS.sub(_replace, _THOUSANDS.sub("", text))
    return text.strip().rstrip(".,;").strip()


def _replace(match: re.Match[str]) -> str:
    if match[1]:
        return match[1]
    if match[2]:
        return ""
    if match[3]:
        return " "
    return _SYNONYMS.get(match[4], "\\text") + ("" if match[4] in ("degree", "lt", "gt", "ast", "star", "lbrack", "rbrack") else " ")


def words_of(text: str) -> str | None:
    r"""Return an answer that is words (`\text{Evelyn}`, `east`, `(C)`) in lower case; None when it is no word."""
    unwrapped = _WRAPPED.sub(r" \1 ", text) if "\\text" in text else text
    explicit = unwrapped is not text
    inner = " ".join(unwrapped.split()).strip(" .")
    letter = inner[1:-1] if len(inner) == 3 and inner[0] == "(" and inner[2] == ")" else inner
    if not _WORDS.fullmatch(letter) or (not explicit and len(letter) == 2 and letter.lower() != "no"):
        return None  # two bare letters are a product
    if not explicit and len(letter) > 1 and all(len(word) == 1 for word in letter.split()):
        return None
    if "," in letter or (not explicit and (" or " in letter or " and " in letter)):
        return None
    # One letter is compared like a word, whatever its case: x for X, (c) for C. "i" and "e" may stand for numbers.
    return None if letter in ("i", "e") and not explicit else letter.lower()


def split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """Cut `text` at the separators that stand outside all brackets."""
    if not any(separator in text for separator in separators):
        return [text]
    pieces, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if depth == 0:
            found = next((separator for separator in separators if text.startswith(separator, index)), None)
            if found is not None:
                pieces.append(text[start:index].strip())
                index += len(found)
                start = index
                continue
        character = text[index]
        depth += (character in _OPENING) - (character in _CLOSING)
        index += 2 if text.startswith("\\\\", index) else 1
    pieces.append(text[start:].strip())
    return pieces if depth == 0 else [text]


def take_unit(text: str) -> tuple[str, str]:
    r"""Return (what is left, its unit): `5.4 \text{ cents}` is ("5.4", "cent"), `90^\circ` ("90", "degree"), `\$5` ("5", "dollar")."""
    text = text.strip()
    if text.isdigit():
        return text, ""
    currency = _CURRENCY.fullmatch(text)
    if currency and currency[3]:
        core, unit = take_unit(currency[3])
        return currency[1] + core, currency[2] or "dollar" if not unit or unit == "dollar" else f"dollar {unit}"
    degrees = _DEGREES.search(text)
    if degrees and degrees.start():
        return text[: degrees.start()], "degree"
    percent = _PERCENT.search(text)
    if percent and percent.start():
        return text[: percent.start()].strip(), "%"
    for pattern in (_TEXT_UNIT, _PLAIN_UNIT):
        found = pattern.search(text)
        if found and found.start():
            named = _unit(found[1], found[2] or found[3] or "", plain=pattern is _PLAIN_UNIT)
            if named is not None:
                return text[: found.start()].strip(), named
    return text, ""


def _unit(phrase: str, exponent: str, plain: bool) -> str | None:
    """Return the usual name of a unit, or None when `phrase` is none."""
    words: list[str] = [word.strip(".").lower() for word in phrase.replace("\\", " ").replace("-", " ").split() if word.strip(".")]
    if not words:
        return ""
    per = [word for word in words if word != "per"] if len(words) == 3 and words[1] == "per" else words
    if NO_UNITS & {word for number, word in enumerate(per) if word != "of" or number == 0}:  # "pieces of paper" is a unit
        return None
    if plain and not all(word in SHORT_UNITS or word == "of" or (len(word) > 3 and set(word) & set("aeiou")) for word in per):
        return None
    for square, power in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if words[0] == square and len(words) > 1:
            words, exponent = words[1:], power
    words[0] = words[0].removesuffix("s") if len(words[0]) > 2 else words[0]
    name = " ".join(words)
    return UNIT_ALIASES.get(name, name) + (f"^{exponent}" if exponent else "")
