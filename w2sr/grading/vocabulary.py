"""Words with a meaning for grading: names of functions, numbers and units."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln exp log")
GREEK = _words(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega
    Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega varphi vartheta varepsilon"""
)
_COUNTED = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty"""
NUMBERS = {word: number for number, word in enumerate(_COUNTED.split())}
# A text with one of these may stand for a number or a set ("all real numbers"), so it is not just different from one.
TELLING = _words(
    """thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half third quarter none no nothing empty all every
    any real reals infinite infinity infinitely infty undefined both point origin"""
).union(NUMBERS)
# Words that change a value, or that end a sentence rather than name a unit: a phrase with one of these is no unit.
NO_UNITS = _words(
    """hundred thousand million billion trillion dozen dozens pair pairs score half halves third thirds quarter quarters percent
    percentage pct times squared cubed factorial plus minus over and or not no is isn to than less more of if else except about roughly
    approximately around nearly between mod modulo pi sqrt sin cos tan cot sec csc ln log exp infinity base double triple k remainder per"""
)
# Units that are recognised without \\text although they have fewer than four letters, or no vowel.
SHORT_UNITS = _words(
    """cm mm km m ft in mi yd kg g mg lb lbs oz s h hr hrs min mph kph ml l sq cu deg rad day men cats dogs eggs cups bags box pens cars
    toys hats jars way ages kids pies bats cows hens pigs"""
)
UNIT_ALIASES = {
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "kilometer": "km",
    "kilometre": "km",
    "meter": "m",
    "metre": "m",
    "feet": "ft",
    "foot": "ft",
    "inche": "in",
    "inch": "in",
    "mile": "mi",
    "yard": "yd",
    "kilogram": "kg",
    "gram": "g",
    "pound": "lb",
    "ounce": "oz",
    "second": "s",
    "sec": "s",
    "hour": "h",
    "hr": "h",
    "minute": "min",
    "liter": "l",
    "litre": "l",
    "deg": "degree",
    "dollar": "dollar",
    "usd": "dollar",
    "people": "person",
    "mile per hour": "mph",
}
